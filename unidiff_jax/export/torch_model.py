"""OneDiffusion's transformer (NextDiT) in plain PyTorch, written from its description alone.

    model = load_torch_denoiser("folder/transformer")
    velocity = model(samples, timesteps, text_states, text_mask)

A second implementation, for tests and for the benchmark: it shares no maths with `models/dit.py`.
Its modules carry the official names, so that a released or exported state dict loads with
`strict=True`. One block is, with c the embedding of a token's time plus the pooled text,

    s1, g1, s2, g2 = Linear(SiLU(c))
    x = x + tanh(g1) * RMS(Attention(RMS(x) * (1 + s1), RMS(text)))
    x = x + tanh(g2) * RMS(FFN(RMS(x) * (1 + s2)))

and c is evaluated at every token, as in the official code. Needs the extra `torch`: other modules
import this one, if at all, inside the function that needs it.
"""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Complex, Float, Shaped
from torch import Tensor, nn

from unidiff_jax.export.files import open_tensors, read_config
from unidiff_jax.paths import AnyPath
from unidiff_jax.sample.denoiser import SOFTCAP, NextDiTConfig


def load_torch_denoiser(
    folder: AnyPath, *, dtype: str = "float32", softcap: float | None = None
) -> "NextDiT":
    """Loads a released or exported `transformer` folder.

    Args:
      folder: `config.json` and safetensors, one file or sharded.
      dtype: of weights and activations: float32, bfloat16 or float16.
      softcap: bound of the image attention's scores, 0 for none; None does as the official code: 30
        in 16 bits, none in float32.

    Raises:
      FolderError: the folder cannot be read.
      RuntimeError: its tensors are not those of its config; PyTorch names them.
    """
    if softcap is None:
        softcap = 0.0 if dtype == "float32" else SOFTCAP
    with torch.device("meta"):
        model = NextDiT(NextDiTConfig.from_json(read_config(folder)), softcap=softcap)
    state = {
        name: torch.from_numpy(np.array(tensor[:], np.float32)).to(getattr(torch, dtype))
        for name, tensor in open_tensors(folder).items()
    }
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval()


class NextDiT(nn.Module):
    """The denoiser, with the official call and the official parameter names."""

    def __init__(self, config: NextDiTConfig, *, softcap: float):
        """Makes it with the official initial weights: text gates and `w2` are zero.

        Args:
          config: sizes.
          softcap: bound of the image attention's scores, 0 for none. The released weights were
            trained with 30; the official code applies it in 16 bits only.
        """
        super().__init__()
        c, condition_dim = config, min(config.hidden_size, 1024)
        self.config = c
        self.x_embedder = nn.Linear(c.in_channels * c.patch**2, c.hidden_size)
        self.t_embedder = TimeEmbedder(condition_dim)
        self.y_embedder = nn.Sequential(
            nn.LayerNorm(c.caption_channels, eps=1e-6),
            nn.Linear(c.caption_channels, condition_dim),
        )
        self.layers = nn.ModuleList(
            Block(c, condition_dim=condition_dim, softcap=softcap) for _ in range(c.depth)
        )
        self.final_layer = FinalLayer(c, condition_dim=condition_dim)

    def forward(
        self,
        samples: Float[Tensor, "B F C h w"] | Float[Tensor, "B C h w"],
        timesteps: Float[Tensor, "..."],
        encoder_hidden_states: Float[Tensor, "B L E"],
        encoder_attention_mask: Shaped[Tensor, "B L"],
        scale_factor: float = 1.0,
        scale_watershed: float = 1.0,
    ) -> Float[Tensor, "B F O h w"]:
        """Velocity (noise - data) of every frame.

        Args:
          samples: noisy and given latents.
          timesteps: in 0..1000. (B,), one a sample; the shape of `samples`, averaged over each
            patch; or (B, N), one a token.
          encoder_hidden_states: of the text.
          encoder_attention_mask: 1 for real tokens.
          scale_factor: while every time is below the watershed, positions are divided by it; from
            there on the rotary base is multiplied by it.
          scale_watershed: in 0..1000.

        Raises:
          ValueError: more frames or patches than the rotary table holds.
        """
        c = self.config
        samples = samples[:, None] if samples.ndim == 4 else samples
        grid = (samples.shape[1], samples.shape[3] // c.patch, samples.shape[4] // c.patch)
        most = (c.max_positions[0], c.max_positions[1], c.max_positions[1])
        if any(size > limit for size, limit in zip(grid, most, strict=True)):
            raise ValueError(f"{grid} patches are more than the model's table of {most}")
        below = bool(timesteps.max() < scale_watershed)
        rotary = rotary_table(
            grid,
            head_dim=c.hidden_size // c.num_heads,
            theta=10000.0 * (1.0 if below else scale_factor),
            divisor=scale_factor if below else 1.0,
        ).to(samples.device)

        mask = encoder_attention_mask.bool()
        weight = mask.float()[..., None]
        pooled = (weight * encoder_hidden_states).sum(1) / (weight.sum(1) + 1e-8)
        pooled = self.y_embedder(pooled.to(samples.dtype))
        times = token_times(timesteps, shape=samples.shape, patch=c.patch)
        condition = self.t_embedder(times) + pooled[:, None]

        x = self.x_embedder(patchify(samples, patch=c.patch))
        for layer in self.layers:
            x = layer(x, condition, rotary, encoder_hidden_states, mask)
        return unpatchify(self.final_layer(x, condition), grid=grid, patch=c.patch)


class Block(nn.Module):
    """Attention and feed-forward, each between two norms and behind a tanh gate."""

    def __init__(self, config: NextDiTConfig, *, condition_dim: int, softcap: float):
        super().__init__()
        c, dim = config, config.hidden_size
        self.attention = Attention(c, softcap=softcap)
        self.feed_forward = FeedForward(c)
        self.attention_norm1 = RMSNorm(dim, eps=c.norm_eps)
        self.attention_norm2 = RMSNorm(dim, eps=c.norm_eps)
        self.ffn_norm1 = RMSNorm(dim, eps=c.norm_eps)
        self.ffn_norm2 = RMSNorm(dim, eps=c.norm_eps)
        self.attention_y_norm = RMSNorm(c.caption_channels, eps=c.norm_eps)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(condition_dim, 4 * dim))

    def forward(
        self,
        x: Float[Tensor, "B N D"],
        condition: Float[Tensor, "B N M"],
        rotary: Complex[Tensor, "N pairs"],
        text: Float[Tensor, "B L E"],
        mask: Bool[Tensor, "B L"],
    ) -> Float[Tensor, "B N D"]:
        scale1, gate1, scale2, gate2 = self.adaLN_modulation(condition).chunk(4, dim=-1)
        y = self.attention_norm1(x) * (1 + scale1)
        y = self.attention(y, rotary, self.attention_y_norm(text), mask)
        x = x + gate1.tanh() * self.attention_norm2(y)
        y = self.feed_forward(self.ffn_norm1(x) * (1 + scale2))
        return x + gate2.tanh() * self.ffn_norm2(y)


class Attention(nn.Module):
    """Attention over all frames, plus gated attention of the same rotated queries to the text."""

    def __init__(self, config: NextDiTConfig, *, softcap: float):
        super().__init__()
        c, dim = config, config.hidden_size
        self.num_heads, self.num_kv_heads = c.num_heads, c.num_kv_heads or c.num_heads
        self.head_dim, self.softcap = dim // c.num_heads, softcap
        kv_dim = self.num_kv_heads * self.head_dim
        self.wq = nn.Linear(dim, dim, bias=False)
        self.wk = nn.Linear(dim, kv_dim, bias=False)
        self.wv = nn.Linear(dim, kv_dim, bias=False)
        self.wk_y = nn.Linear(c.caption_channels, kv_dim, bias=False)
        self.wv_y = nn.Linear(c.caption_channels, kv_dim, bias=False)
        self.wo = nn.Linear(dim, dim, bias=False)
        self.gate = nn.Parameter(torch.zeros(c.num_heads))
        # over all heads jointly, before they are split; the text's eps is another one
        self.q_norm = nn.LayerNorm(dim, eps=1e-5) if c.qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(kv_dim, eps=1e-5) if c.qk_norm else nn.Identity()
        self.ky_norm = nn.LayerNorm(kv_dim, eps=1e-6) if c.qk_norm else nn.Identity()

    def forward(
        self,
        x: Float[Tensor, "B N D"],
        rotary: Complex[Tensor, "N pairs"],
        text: Float[Tensor, "B L E"],
        mask: Bool[Tensor, "B L"],
    ) -> Float[Tensor, "B N D"]:
        groups = self.num_heads // self.num_kv_heads
        q = rotate(self.split(self.q_norm(self.wq(x))), rotary)
        k = rotate(self.split(self.k_norm(self.wk(x))), rotary)
        v = self.split(self.wv(x))
        # image: query head j reads head j // groups; text: head j modulo num_kv_heads
        k, v = (y.repeat_interleave(groups, dim=1) for y in (k, v))
        text_k, text_v = self.split(self.ky_norm(self.wk_y(text))), self.split(self.wv_y(text))
        text_k, text_v = (y.repeat(1, groups, 1, 1) for y in (text_k, text_v))

        if self.softcap:
            scores = (q.float() @ k.float().transpose(-1, -2)) / self.head_dim**0.5
            scores = self.softcap * torch.tanh(scores / self.softcap)
            y = scores.softmax(dim=-1).to(v.dtype) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v)
        from_text = F.scaled_dot_product_attention(
            q, text_k, text_v, attn_mask=mask[:, None, None, :]
        )
        y = y + self.gate.tanh()[:, None, None] * from_text
        return self.wo(y.transpose(1, 2).flatten(2))

    def split(self, x: Float[Tensor, "B n dim"]) -> Float[Tensor, "B heads n d"]:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x)."""

    def __init__(self, config: NextDiTConfig):
        super().__init__()
        c, width = config, int(2 * 4 * config.hidden_size / 3)
        if c.ffn_dim_multiplier is not None:
            width = int(c.ffn_dim_multiplier * width)
        width = c.multiple_of * ((width + c.multiple_of - 1) // c.multiple_of)
        self.w1 = nn.Linear(c.hidden_size, width, bias=False)
        self.w2 = nn.Linear(width, c.hidden_size, bias=False)
        self.w3 = nn.Linear(c.hidden_size, width, bias=False)
        nn.init.xavier_uniform_(self.w1.weight)
        nn.init.xavier_uniform_(self.w3.weight)
        nn.init.zeros_(self.w2.weight)

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class FinalLayer(nn.Module):
    """Layer norm without weights, a scale and no shift, and a linear layer."""

    def __init__(self, config: NextDiTConfig, *, condition_dim: int):
        super().__init__()
        out_dim = config.out_channels * config.patch**2
        self.linear = nn.Linear(config.hidden_size, out_dim)
        self.adaLN_modulation = nn.Sequential(
            nn.SiLU(), nn.Linear(condition_dim, config.hidden_size)
        )

    def forward(
        self, x: Float[Tensor, "B N D"], condition: Float[Tensor, "B N M"]
    ) -> Float[Tensor, "B N out"]:
        x = F.layer_norm(x, x.shape[-1:], eps=1e-6)
        return self.linear(x * (1 + self.adaLN_modulation(condition)))


class TimeEmbedder(nn.Module):
    """Cosines and sines of the time at 128 frequencies, and a two-layer network."""

    def __init__(self, dim: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, times: Float[Tensor, "B N"]) -> Float[Tensor, "B N M"]:
        steps = torch.arange(128, dtype=torch.float32, device=times.device)
        angles = times.float()[..., None] * torch.exp(-np.log(10000.0) * steps / 128)
        sinusoids = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return self.mlp(sinusoids.to(next(self.parameters()).dtype))


class RMSNorm(nn.Module):
    """x / rms(x) in float32, cast back, times a weight."""

    def __init__(self, dim: int, *, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Float[Tensor, "... dim"]) -> Float[Tensor, "... dim"]:
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(dim=-1, keepdim=True) + self.eps)
        return y.to(x.dtype) * self.weight


# ----------------------------------------------------------------------------- positions, layouts


def rotary_table(
    grid: tuple[int, int, int], *, head_dim: int, theta: float, divisor: float
) -> Complex[Tensor, "N pairs"]:
    """Unit complex numbers that turn the pairs of a head, for each token of the grid.

    The grid is (frames, patch rows, patch columns), and tokens are in that order.
    A third of the pairs belongs to each axis; pair i of an axis turns by
    position * theta ** (-6 i / head_dim) / divisor.
    """
    frequency = theta ** (-torch.arange(0, head_dim, 6, dtype=torch.float32) / head_dim) / divisor
    place = torch.cartesian_prod(*(torch.arange(size) for size in grid)).float()
    angles = (place[:, :, None] * frequency).flatten(1)
    return torch.polar(torch.ones_like(angles), angles)


def rotate(
    x: Float[Tensor, "B heads N d"], rotary: Complex[Tensor, "N pairs"]
) -> Float[Tensor, "B heads N d"]:
    """Turns adjacent pairs of every head, in float32."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * rotary).flatten(-2).to(x.dtype)


def patchify(x: Float[Tensor, "B F C h w"], *, patch: int) -> Float[Tensor, "B N p"]:
    """Tokens by frame, row, column; inside a token by row, column, channel."""
    x = x.unflatten(4, (-1, patch)).unflatten(3, (-1, patch))  # B F C rows p columns p
    return x.permute(0, 1, 3, 5, 4, 6, 2).flatten(4).flatten(1, 3)


def unpatchify(
    tokens: Float[Tensor, "B N p"], *, grid: tuple[int, int, int], patch: int
) -> Float[Tensor, "B F C h w"]:
    """Inverse of `patchify`."""
    x = tokens.unflatten(1, grid).unflatten(-1, (patch, patch, -1))  # B F rows columns p p C
    return x.permute(0, 1, 6, 2, 4, 3, 5).flatten(5).flatten(3, 4)


def token_times(
    timesteps: Float[Tensor, "..."], *, shape: torch.Size, patch: int
) -> Float[Tensor, "B N"]:
    """One time a token, of times a sample, a token, or a latent's element."""
    if timesteps.ndim == 2:
        return timesteps
    if timesteps.ndim == 1:
        timesteps = timesteps[:, None, None, None, None].expand(shape)
    return patchify(timesteps.reshape(shape), patch=patch).mean(dim=-1)
