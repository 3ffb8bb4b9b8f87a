"""Floating-point operations of the model, from its config and a batch's shapes.

Only matrix products count, 2 m k n each. Attention counts over whole rows, as the reference
computes it, or over the examples of a row (`examples`), all that the mathematics needs. A layer
counts times the depth, whether the layers are scanned or not. Recomputation in the backward pass
(`remat`) does not count: the number says what the mathematics needs, and so its share of the
machine's peak says what is lost. `launch.roofline` adds what is computed again.

The backward pass of y = A B has one product for each operand that needs a gradient, and each costs
what y costs. That makes three times the forward pass, except where an operand is data: the patches,
the sinusoids, and the one-hot tables that spread a frame's row to its tokens.

XLA's own count (`compiled.cost_analysis()["flops"]`) differs for two reasons. It adds norms,
softmax, masks, random bits and the optimizer, one each element and operation; and it counts a
scanned body once.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

from unidiff_jax.models.clip import CLIPTowersConfig
from unidiff_jax.models.dit import DiTConfig
from unidiff_jax.models.multimodal import MultimodalConfig, PatchT5Config
from unidiff_jax.models.pixels import PixelConfig
from unidiff_jax.models.t5 import T5Config
from unidiff_jax.models.text_encoder import TextConfig
from unidiff_jax.text import MAX_NAMES
from unidiff_jax.types import Batch, Role


class Product(NamedTuple):
    """Matrix products of one place in the model.

    Attributes:
      name: where it is.
      size: m k n.
      operands: how many of the two need a gradient.
      count: number of layers that have it.
    """

    name: str
    size: int
    operands: int = 2
    count: int = 1

    @property
    def forward(self) -> int:
        return 2 * self.size * self.count

    @property
    def backward(self) -> int:
        return self.operands * self.forward


def forward_flops(dit: DiTConfig, text: TextConfig, batch: Batch, **settings: Any) -> int:
    """Operations of one forward pass. Arguments as `products`.

    Example:
      >>> forward_flops(*model_configs(config), next(loader))
    """
    return sum(product.forward for product in products(dit, text, batch, **settings))


def train_flops(dit: DiTConfig, text: TextConfig, batch: Batch, **settings: Any) -> int:
    """Operations of one train step: forward and backward pass. Arguments as `products`."""
    every = products(dit, text, batch, **settings)
    return sum(product.forward + product.backward for product in every)


def products(
    dit: DiTConfig,
    text: TextConfig,
    batch: Batch,
    *,
    trains_text: bool = True,
    examples: int = 1,
    pixels: PixelConfig | None = None,
) -> list[Product]:
    """Every matrix product of the model.

    Args:
      dit: the denoiser.
      text: its text encoder; not counted where the batch carries `text_states`.
      batch: arrays or shapes of the whole batch, with one noise level a frame.
      trains_text: whether the text encoder is trained too.
      examples: equal examples in a row, whose attention alone counts; 1 is the whole row.
      pixels: the autoencoder, where it runs in the step.
    """
    encodes = batch.text_states is None
    trains_text = trains_text and encodes
    return [
        *(_encoder(text, batch, trains_text) if encodes else ()),
        *_denoiser(dit, batch, trains_text, examples),
        *([Product("autoencoder", autoencoder_flops(pixels, batch) // 2, 0)] if pixels else ()),
    ]


def autoencoder_flops(config: PixelConfig, batch: Batch) -> int:
    """Operations of the encoder on a batch's pictures (`models.vae.Encoder`); a convolution is a
    product for each of its places.
    """
    vae = config.vae
    width, moments = vae.block_out_channels[0], 2 * vae.latent_channels
    places = config.size**2
    size = places * 9 * vae.in_channels * width
    for number, out in enumerate(vae.block_out_channels):
        for block in range(vae.layers_per_block):
            size += places * _residual_block(width if block == 0 else out, out)
        if number < len(vae.block_out_channels) - 1:
            places //= 4
            size += places * 9 * out * out
        width = out
    size += places * (2 * _residual_block(width, width) + 9 * width * moments)
    if vae.mid_block_add_attention:
        size += places * (4 * width * width + 2 * places * width)
    if vae.use_quant_conv:
        size += places * moments * moments
    pictures = batch.tokens.shape[0] * batch.tokens.shape[1] // config.side**2
    return 2 * size * pictures * (1 if batch.visual is None else 2)


def _residual_block(width: int, out: int) -> int:
    return 9 * width * out + 9 * out * out + (width * out if width != out else 0)


def _encoder(config: TextConfig, batch: Batch, trained: bool) -> Iterable[Product]:
    b, s = batch.text_segment.shape
    operands = 2 if trained else 0
    if isinstance(config, PatchT5Config | MultimodalConfig):
        yield from _pictures(config, batch, operands)
        config = config.text
    for d, inner, ffn, layers in _encoder_sizes(config):
        yield Product("text.projections", 4 * b * s * d * inner, operands, layers)
        yield Product("text.attention", 2 * b * s * s * inner, operands, layers)
        yield Product("text.ffn", b * s * d * ffn, operands, layers)


def _pictures(
    config: PatchT5Config | MultimodalConfig, batch: Batch, operands: int
) -> Iterable[Product]:
    """What brings the rows of the asset table to the words' width."""
    assert batch.asset_features is not None
    b, a, width = batch.asset_features.shape
    e = config.text.d_model
    if isinstance(config, PatchT5Config):
        yield Product("text.picture_in", b * a * width * e, min(operands, 1))
        return
    v, q, queries = config.vision, config.qformer, config.num_query_tokens
    patches, n = (v.image_size // v.patch_size) ** 2, b * (a - 1)
    d, places = v.hidden_size, patches + 1
    yield Product("vision.patches", n * patches * 3 * v.patch_size**2 * d, min(operands, 1))
    yield Product("vision.projections", 4 * n * places * d * d, operands, v.num_hidden_layers)
    yield Product("vision.attention", 2 * n * places**2 * d, operands, v.num_hidden_layers)
    ffn = 2 * n * places * d * v.intermediate_size
    yield Product("vision.ffn", ffn, operands, v.num_hidden_layers)
    h, layers = q.hidden_size, q.num_hidden_layers
    looks = layers // q.cross_attention_frequency
    yield Product("qformer.projections", 4 * n * queries * h * h, operands, layers)
    yield Product("qformer.attention", 2 * n * queries**2 * h, operands, layers)
    yield Product("qformer.ffn", 2 * n * queries * h * q.intermediate_size, operands, layers)
    cross = 2 * n * queries * h * h + 2 * n * places * d * h
    yield Product("qformer.cross_projections", cross, operands, looks)
    yield Product("qformer.cross_attention", 2 * n * queries * places * h, operands, looks)
    yield Product("text.projection", n * queries * h * e, operands)


def _encoder_sizes(config: T5Config | CLIPTowersConfig) -> list[tuple[int, int, int, int]]:
    """Of each tower: width, width of all heads, feed-forward width times matrices, layers."""
    if isinstance(config, T5Config):
        return [
            (config.d_model, config.num_heads * config.d_kv, 3 * config.d_ff, config.num_layers)
        ]
    return [
        (c.hidden_size, c.hidden_size, 2 * c.intermediate_size, c.num_hidden_layers - c.skip_layers)
        for c in config.towers
    ]


def _denoiser(c: DiTConfig, batch: Batch, trained_text: bool, examples: int) -> Iterable[Product]:
    (b, t, _), p = batch.tokens.shape, c.patch_dim
    s, g, u = batch.text_segment.shape[1], batch.task.shape[1], batch.segment.shape[1]
    d, m, e, layers = c.hidden_dim, c.condition_dim, c.text_dim, c.depth
    kv = c.num_kv_heads * c.head_dim
    # once a batch
    yield Product("patch_embed", b * t * (p + c.guidance_dim) * d, operands=1)
    yield Product("sigma_embed.hidden", b * u * 256 * m, operands=1)
    yield Product("sigma_embed.out", b * u * m * m)
    yield Product("text_pool", b * s * g * e, operands=int(trained_text))
    yield Product("text_embed", b * g * e * m)
    yield Product("text_spread", b * u * g * m, operands=1)
    yield Product("out_scale", b * u * m * d)
    yield Product("out_scale.spread", b * t * u * d, operands=1)
    yield Product("out", b * t * d * p)
    if c.asset_dim and batch.asset_features is not None:
        a = batch.asset_features.shape[1]
        yield Product("asset_in", b * a * c.asset_dim * e, operands=1)
        yield Product("asset_in.spread", b * s * a * e, operands=1)
    if c.fusion != "cross":
        yield Product("text_in", b * s * e * d, operands=1 + int(trained_text))
        yield Product("role_embed", b * u * (len(Role) - 1) * d, operands=1)
        yield Product("name_embed", b * (u + s) * 2 * MAX_NAMES * d, operands=1)
        yield Product("frames.spread", b * t * u * d, operands=1)
    # once a block
    modulations = 1 if c.shared_modulation else layers
    yield Product("modulation", b * u * m * 4 * d, count=modulations)
    yield Product("modulation.spread", b * t * u * 4 * d, operands=1, count=layers)
    if c.fusion != "cross":
        rows = g if c.fusion == "joint" else u  # text modulated by example, or by frame
        yield Product("modulation.text", b * rows * m * 4 * d, count=modulations)
        yield Product("modulation.text_spread", b * s * rows * 4 * d, operands=1, count=layers)
        yield Product("attention.projections", b * (t + s) * d * (2 * d + 2 * kv), count=layers)
        yield Product("attention", 2 * b * (t + s) ** 2 * d // examples, count=layers)
        yield Product("ffn", 3 * b * (t + s) * d * c.ffn_dim, count=layers)
        return
    yield Product("attention.projections", b * t * d * (2 * d + 2 * kv), count=layers)
    yield Product("attention.text_projections", 2 * b * s * e * kv, count=layers)
    yield Product("attention.image", 2 * b * t * t * d // examples, count=layers)
    yield Product("attention.text", 2 * b * t * s * d // examples, count=layers)
    if batch.entity_mask is not None:
        yield Product("attention.maps", 2 * b * t * s * d // examples, count=len(c.map_layers))
    yield Product("ffn", 3 * b * t * d * c.ffn_dim, count=layers)
