"""A unified image diffusion transformer in plain PyTorch; needs torch and safetensors alone.

    model = UnifiedDiT.from_folder("folder/transformer")
    latents = sample(model, noise, text_states, text_mask, num_steps=30)

An image task is a sequence of frames: pictures, maps, masks. Given frames hold clean latents (noise
level sigma = 0); a frame that is made starts from noise (sigma = 1). All frames are one sequence of
tokens. One block is, with c the embedding of a frame's noise level plus the pooled text,

    s1, g1, s2, g2 = Linear(SiLU(c))
    x = x + tanh(g1) * RMS(Attention(RMS(x) * (1 + s1)))
    x = x + tanh(g2) * RMS(FFN(RMS(x) * (1 + s2)))

and the text enters in one of three ways (`fusion`):

- `cross`: the queries of the image attend to the image, and with a gate a head to the text too.
- `joint`: text tokens go through the same blocks, and all tokens attend to all. The text's c is the
  pooled text alone.
- `dual`: as `joint`, but the text stream has weights of its own, and its c is that of the first
  frame that is made.

Shapes: B examples, F frames, C channels of h x w latents, N image tokens, S text tokens of width E,
A assets of W features, d the model's width, M that of c, H heads of K channels.

Text states are the last states of the text encoder. Where a folder `picture_encoder` lies beside
it, prompts hold pictures among their words, and `PictureWords` makes the encoder's `inputs_embeds`;
a BLIP-2's states are those of its language model's encoder, with the Q-Former's vectors projected
to the places of the pictures. The prompt's words IMG1, RES1, ... call frames;
`names` and `text_names` hold their numbers: n for IMGn, the n-th given frame, 10 + n for RESn, the
n-th that is made, 0 for none. Roles are 0 none, 1 canvas, 2 asset, 3 control.

What latents are, `autoencoder` in `config.json` says: `autoencoder_kl` is the folder `vae`
(diffusers' AutoencoderKL, without its shift) times `scaling_factor`; `space_to_depth` is RGB in
[-1, 1] with blocks of `downscale` x `downscale` pixels moved into channels, by row, column and
colour.
"""

import dataclasses
import itertools
import json
import math
import pathlib

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

SCHEMA = "unidiff_dit/1"
WEIGHTS = "diffusion_pytorch_model.safetensors"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flow:
    """What the output means, and how noise levels are spaced.

    Attributes:
      prediction: `v` (velocity, noise - data), `x` (data) or `eps` (noise).
      shift: of the sampler's levels towards noise.
      min_sigma: noise prediction divides by at least this.
      timed_conditions: whether given frames carry the embedding of their noise level.
    """

    prediction: str
    shift: float
    min_sigma: float
    timed_conditions: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnifiedConfig:
    """The keys of `config.json` that the network reads.

    Attributes:
      patch: latent pixels of a token, each way.
      latent_channels: C.
      fusion: how text enters: cross, joint or dual.
      hidden_dim: d.
      depth: number of blocks.
      num_heads, num_kv_heads: heads of queries, and of keys and values.
      text_dim: E.
      ffn_multiple_of, ffn_dim_multiplier: the feed-forward width 8 d / 3 is scaled by the second
        and rounded up to a multiple of the first.
      qk_norm: layer norm over all heads of queries and keys.
      norm_eps: of the RMS norms.
      softcap: bound of the image attention's scores; 0 for none.
      rope_theta, rope_scale: base and factor of the rotary angles.
      guidance_dim: channels of a token's guidance (a picture and a mask); 0 for none.
      asset_dim: W; 0 for none.
      shared_modulation: one modulation for all blocks.
      num_roles, num_names: rows of the tables of roles and names.
      flow: see `Flow`.
    """

    patch: int
    latent_channels: int
    fusion: str
    hidden_dim: int
    depth: int
    num_heads: int
    num_kv_heads: int
    text_dim: int
    ffn_multiple_of: int
    ffn_dim_multiplier: float | None
    qk_norm: bool
    norm_eps: float
    softcap: float
    rope_theta: float
    rope_scale: float
    guidance_dim: int
    asset_dim: int
    shared_modulation: bool
    num_roles: int
    num_names: int
    flow: Flow

    @classmethod
    def from_json(cls, values: dict) -> "UnifiedConfig":
        """Reads the file's values; raises ValueError where they are of another schema."""
        if values.get("schema") != SCHEMA:
            raise ValueError(f"schema is {values.get('schema')!r}; this module reads {SCHEMA!r}")
        chosen = {f.name: values[f.name] for f in dataclasses.fields(cls)}
        return cls(**chosen | {"flow": Flow(**values["flow"])})

    @property
    def patch_dim(self) -> int:
        return self.latent_channels * self.patch**2

    @property
    def head_dim(self) -> int:
        return self.hidden_dim // self.num_heads

    @property
    def condition_dim(self) -> int:
        return min(self.hidden_dim, 1024)

    @property
    def ffn_dim(self) -> int:
        width = int(8 * self.hidden_dim / 3)
        if self.ffn_dim_multiplier is not None:
            width = int(self.ffn_dim_multiplier * width)
        return -(-width // self.ffn_multiple_of) * self.ffn_multiple_of


class UnifiedDiT(nn.Module):
    """The denoiser."""

    def __init__(self, config: UnifiedConfig):
        """Makes it with PyTorch's initial weights; see `from_folder`."""
        super().__init__()
        c, dim, condition_dim = config, config.hidden_dim, config.condition_dim
        self.config = c
        self.patch_embed = nn.Linear(c.patch_dim + c.guidance_dim, dim)
        self.sigma_embed = SigmaEmbed(condition_dim)
        self.text_norm = nn.LayerNorm(c.text_dim, eps=1e-6)
        self.text_embed = nn.Linear(c.text_dim, condition_dim)
        block = CrossBlock if c.fusion == "cross" else JointBlock
        self.blocks = nn.ModuleList(block(c) for _ in range(c.depth))
        if c.shared_modulation:
            self.modulation = nn.Linear(condition_dim, 4 * dim)
            if c.fusion == "dual":
                self.text_modulation = nn.Linear(condition_dim, 4 * dim)
        if c.asset_dim:
            self.asset_in = nn.Linear(c.asset_dim, c.text_dim)
        if c.fusion != "cross":
            self.text_in = nn.Linear(c.text_dim, dim)
            self.role_embed = Numbered(c.num_roles, dim)
            self.name_embed = Numbered(c.num_names, dim)
        self.out_scale = nn.Linear(condition_dim, dim)
        self.out = nn.Linear(dim, c.patch_dim)

    @classmethod
    def from_folder(
        cls,
        folder: str | pathlib.Path,
        *,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
    ) -> "UnifiedDiT":
        """Loads `config.json` and the weights, one file or several.

        Raises:
          ValueError: the folder is of another schema, or its index names a file outside it.
          RuntimeError: its tensors are not those of its config; PyTorch names them.
        """
        folder = pathlib.Path(folder)
        config = UnifiedConfig.from_json(json.loads((folder / "config.json").read_text()))
        with torch.device("meta"):
            model = cls(config)
        index = folder / f"{WEIGHTS}.index.json"
        files = {WEIGHTS}
        if index.is_file():
            files = set(json.loads(index.read_text())["weight_map"].values())
            for file in files:
                if file in ("", "..") or pathlib.PurePath(file).name != file:
                    raise ValueError(f"{index} names {file!r}, which is no file beside it")
        state = {}
        for file in sorted(files):
            state |= load_file(folder / file, device=device)
        state = {name: tensor.to(dtype) for name, tensor in state.items()}
        model.load_state_dict(state, strict=True, assign=True)
        return model.eval()

    def forward(
        self,
        latents: Tensor,
        sigma: Tensor,
        text_states: Tensor,
        text_mask: Tensor,
        roles: Tensor | None = None,
        names: Tensor | None = None,
        text_names: Tensor | None = None,
        given: Tensor | None = None,
        visual: Tensor | None = None,
        mask: Tensor | None = None,
        asset_features: Tensor | None = None,
        text_asset: Tensor | None = None,
        sizes: Tensor | None = None,
    ) -> Tensor:
        """Predicts velocity, data or noise (`config.flow.prediction`) of every frame.

        Args:
          latents: (B, F, C, h, w), noisy where a frame is made and clean where it is given.
          sigma: (B, F) noise levels in [0, 1]; 0 for given frames.
          text_states: (B, S, E).
          text_mask: (B, S), 1 for real tokens; at least one a row.
          roles: (B, F), see the module; not for `cross`. None is all 0, as for the next three.
          names: (B, F), as roles.
          text_names: (B, S), the frame that a text token names; as roles.
          given: (B, F), 1 for given frames.
          visual: (B, C, h, w) latents of the picture that guides every frame; zeros for none.
          mask: (B, h, w) share of a latent pixel that is to be made; 1 without a hole.
          asset_features: (B, A, W) features of reference pictures.
          text_asset: (B, S), n where the features of the n-th asset (1 and up) take the place of
            the token's state; 0 for the others.
          sizes: (B, F, 2) height and width of each frame in latent pixels, at the upper left of
            `latents`; 0 for a frame that the row does not have. None: all are h x w.

        Returns:
          (B, F, C, h, w), zero outside `sizes`.

        Raises:
          ValueError: inputs that the model does not read or lacks, or a row without text.
        """
        c = self.config
        batch, frames, _, height, width = latents.shape
        grid = (frames, height // c.patch, width // c.patch)
        dtype, device = self.patch_embed.weight.dtype, latents.device
        self._check(latents, text_mask, (roles, names, text_names), (visual, mask))
        if text_asset is not None and (asset_features is None or not c.asset_dim):
            raise ValueError("text_asset needs asset_features, and a model with asset_dim")
        given = torch.zeros_like(sigma, dtype=torch.long) if given is None else given
        present = token_presence(sizes, batch=batch, grid=grid, patch=c.patch, device=device)
        text, text_mask = text_states.to(dtype), text_mask.bool()
        if text_asset is not None:
            features = self.asset_in(asset_features.to(dtype))
            text = torch.where(text_asset[..., None] > 0, pick(features, text_asset), text)

        # c of each frame, and of the text
        weight = text_mask[..., None].float()
        pooled = (weight * text.float()).sum(1) / (weight.sum(1) + 1e-8)
        pooled = self.text_embed(self.text_norm(pooled.to(dtype)))[:, None]  # (B, 1, M)
        time = self.sigma_embed(sigma)
        if not c.flow.timed_conditions:
            time = torch.where(given[..., None] == 0, time, 0.0)
        condition = F.silu(pooled + time)  # (B, F, M)
        rows, text_rows = condition, F.silu(pooled)
        if c.fusion == "dual":
            made = (given == 0) & present.unflatten(1, (frames, -1)).any(-1)
            if not made.any(1).all():
                raise ValueError("fusion='dual' needs a frame that is made in every row")
            text_rows = condition[torch.arange(batch, device=device), made.int().argmax(1)][:, None]
        if c.shared_modulation:
            own = self.text_modulation if c.fusion == "dual" else self.modulation
            rows, text_rows = self.modulation(rows), own(text_rows)

        tokens = patchify(latents, patch=c.patch)
        if c.guidance_dim:
            guides = (visual[:, None], mask[:, None, None])  # of one frame; the same for all
            guides = [patchify(guide, patch=c.patch).repeat(1, frames, 1) for guide in guides]
            tokens = torch.cat([tokens, *guides], dim=-1)
        x = self.patch_embed(tokens.to(dtype))  # (B, N, d)
        per_frame = grid[1] * grid[2]
        if c.fusion != "cross":
            frame_words = torch.zeros(batch, frames, c.hidden_dim, dtype=dtype, device=device)
            if roles is not None:
                frame_words = frame_words + self.role_embed(roles)
            if names is not None:
                frame_words = frame_words + self.name_embed(names)
            x = x + frame_words.repeat_interleave(per_frame, dim=1)
            text = self.text_in(text)
            if text_names is not None:
                text = text + self.name_embed(text_names)
        rotary = rotary_angles(
            grid, head_dim=c.head_dim, theta=c.rope_theta, scale=c.rope_scale, device=device
        )
        for block in self.blocks:
            x, text = block(x, text, rows, text_rows, rotary, present, text_mask)

        scale = self.out_scale(condition).repeat_interleave(per_frame, dim=1)
        x = F.layer_norm(x.float(), x.shape[-1:], eps=1e-6).to(dtype) * (1 + scale)
        tokens = self.out(x).float() * present[..., None]
        return unpatchify(tokens, grid=grid, patch=c.patch)

    def velocity(self, latents: Tensor, sigma: Tensor, *args, **inputs) -> Tensor:
        """The velocity d latents / d sigma of frames that are made; arguments as `forward`."""
        output, flow = self(latents, sigma, *args, **inputs), self.config.flow
        level = sigma[:, :, None, None, None]
        if flow.prediction == "x":
            return (latents - output) / level.clamp(min=1e-3)
        if flow.prediction == "eps":
            return (output - latents) / (1 - level).clamp(min=flow.min_sigma)
        return output

    def _check(self, latents, text_mask, numbers, guides):
        """Raises ValueError, see `forward`."""
        c = self.config
        _, _, channels, height, width = latents.shape
        if channels != c.latent_channels or height % c.patch or width % c.patch:
            raise ValueError(
                f"latents must be (B, F, {c.latent_channels}, h, w) with sides that {c.patch} "
                f"divides, got {tuple(latents.shape)}"
            )
        if not text_mask.bool().any(1).all():
            raise ValueError("a row has no text: the empty prompt is its end-of-text token")
        if c.fusion == "cross" and any(number is not None for number in numbers):
            raise ValueError("fusion='cross' reads no roles and no names")
        found = [guide is not None for guide in guides]
        if c.guidance_dim and not all(found):
            raise ValueError("this model needs visual and mask; without a picture zeros and ones")
        if not c.guidance_dim and any(found):
            raise ValueError("this model has no channels for visual and mask: pictures are frames")


# ------------------------------------------------------------------------------------------ blocks


class PictureWords(nn.Module):
    """Words and the patches of pictures among them, as a T5's encoder reads both.

    pictures = PictureWords.from_folder("folder/picture_encoder")
    embeddings = pictures(t5.get_input_embeddings()(ids), patches, shown)
    states = t5(inputs_embeds=embeddings, attention_mask=mask).last_hidden_state
    """

    def __init__(self, picture_dim: int, width: int):
        super().__init__()
        self.picture_in = nn.Linear(picture_dim, width)

    @classmethod
    def from_folder(cls, folder: str | pathlib.Path, *, device: str = "cpu") -> "PictureWords":
        """Loads `config.json` and the weights."""
        folder = pathlib.Path(folder)
        values = json.loads((folder / "config.json").read_text())
        model = cls(values["picture_dim"], values["width"]).to(device)
        model.load_state_dict(load_file(folder / "model.safetensors", device=device))
        return model.eval()

    def forward(self, words: Tensor, patches: Tensor, shown: Tensor) -> Tensor:
        """The encoder's input.

        Args:
          words: (B, S, E) embeddings of the prompt's ids; a picture stands in as many places as it
            has vectors, with any id.
          patches: (B, A, W) vectors of the pictures, one picture behind the other
            (`picture_patches`).
          shown: (B, S), n where the n-th vector (1 and up) stands; 0 for a word.
        """
        vectors = self.picture_in(patches.to(words.dtype))
        return torch.where(shown[..., None] > 0, pick(vectors, shown), words)


def picture_patches(pictures: Tensor, *, patches: int = 2, grid: int = 8) -> Tensor:
    """Vectors (n, 1 + patches ** 2, 3 * grid ** 2 + 1 + patches ** 2) of pictures (n, h, w, 3).

    The first is of the whole picture, the others of its patches by row and column, at `grid` x
    `grid` pixels each. Colours are in [0, 255], and sides multiples of `patches * grid`.
    """
    x = pictures.float().permute(0, 3, 1, 2)
    large = F.adaptive_avg_pool2d(x, patches * grid).round()
    parts = large.unflatten(3, (patches, grid)).unflatten(2, (patches, grid))
    parts = parts.permute(0, 2, 4, 3, 5, 1).flatten(1, 2)
    whole = F.adaptive_avg_pool2d(x, grid).round().permute(0, 2, 3, 1)
    colors = torch.cat([whole[:, None], parts], dim=1).flatten(2) / 127.5 - 1
    number = torch.eye(colors.shape[1], device=colors.device).expand(len(colors), -1, -1)
    return torch.cat([colors, number], dim=-1)


class Stream(nn.Module):
    """The weights of one stream in a block: attention and feed-forward with norms on both sides."""

    def __init__(self, config: UnifiedConfig, attention: type[nn.Module]):
        super().__init__()
        dim, eps = config.hidden_dim, config.norm_eps
        shared = config.shared_modulation
        self.modulation = None if shared else nn.Linear(config.condition_dim, 4 * dim)
        self.attention_norm = RMSNorm(dim, eps=eps)
        self.attention_out_norm = RMSNorm(dim, eps=eps)
        self.attention = attention(config)
        self.ffn_norm = RMSNorm(dim, eps=eps)
        self.ffn_out_norm = RMSNorm(dim, eps=eps)
        self.ffn = FeedForward(dim, config.ffn_dim)

    def modulate(self, rows: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        """s1, g1, s2, g2 of the tokens x, (B, n, d) each; every row serves equally many tokens."""
        rows = rows if self.modulation is None else self.modulation(rows)
        return rows.repeat_interleave(x.shape[1] // rows.shape[1], dim=1).chunk(4, dim=-1)

    def finish(self, x: Tensor, y: Tensor, gate1: Tensor, scale2: Tensor, gate2: Tensor) -> Tensor:
        """The rest of a block, of its input and of what attention gave."""
        x = x + gate1.tanh() * self.attention_out_norm(y)
        y = self.ffn(self.ffn_norm(x) * (1 + scale2))
        return x + gate2.tanh() * self.ffn_out_norm(y)


class CrossBlock(Stream):
    """`cross`: the text is read and stays as it is."""

    def __init__(self, config: UnifiedConfig):
        super().__init__(config, CrossAttention)
        self.text_norm = RMSNorm(config.text_dim, eps=config.norm_eps)

    def forward(self, x, text, rows, text_rows, rotary, present, text_mask):
        """As `JointBlock`, but text is (B, S, E)."""
        scale1, *others = self.modulate(rows, x)
        normed = self.attention_norm(x) * (1 + scale1)
        y = self.attention(normed, self.text_norm(text), rotary, present, text_mask)
        return self.finish(x, y, *others), text


class JointBlock(Stream):
    """`joint` and `dual`: image and text tokens go in and come out."""

    def __init__(self, config: UnifiedConfig):
        super().__init__(config, Attention)
        self.softcap = config.softcap
        self.text = Stream(config, Attention) if config.fusion == "dual" else None

    def forward(self, x, text, rows, text_rows, rotary, present, text_mask):
        """One block.

        Args:
          x: (B, N, d) image tokens.
          text: (B, S, d) text tokens.
          rows: (B, F, M) c of the frames, or its modulation (B, F, 4 d) where that is shared.
          text_rows: (B, 1, M) of the text, likewise.
          rotary: (N, K / 2) angles of the image tokens; nothing marks the place of a text token.
          present: (B, N), False for padding.
          text_mask: (B, S), False for padding.
        """
        other = self if self.text is None else self.text
        scale1, *image_rest = self.modulate(rows, x)
        text_scale1, *text_rest = other.modulate(text_rows, text)
        q, k, v = self.attention.project(self.attention_norm(x) * (1 + scale1))
        text_q, text_k, text_v = other.attention.project(
            other.attention_norm(text) * (1 + text_scale1)
        )
        y = attend(
            torch.cat([rotate(q, rotary), text_q], dim=2),
            torch.cat([rotate(k, rotary), text_k], dim=2),
            torch.cat([v, text_v], dim=2),
            seen=torch.cat([present, text_mask], dim=1),
            softcap=self.softcap,
        )
        y, text_y = y.split((x.shape[1], text.shape[1]), dim=1)
        x = self.finish(x, self.attention.out(y), *image_rest)
        return x, other.finish(text, other.attention.out(text_y), *text_rest)


class Attention(nn.Module):
    """Projections to queries, keys and values, and back."""

    def __init__(self, config: UnifiedConfig):
        super().__init__()
        self.head_dim = config.head_dim
        dim, kv_dim = config.hidden_dim, config.num_kv_heads * config.head_dim
        self.q = nn.Linear(dim, dim, bias=False)
        self.k = nn.Linear(dim, kv_dim, bias=False)
        self.v = nn.Linear(dim, kv_dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        # over all heads jointly, before they are split
        self.q_norm = nn.LayerNorm(dim, eps=1e-5) if config.qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(kv_dim, eps=1e-5) if config.qk_norm else nn.Identity()

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries (B, H, n, K), keys and values of tokens (B, n, d)."""
        projected = (self.q_norm(self.q(x)), self.k_norm(self.k(x)), self.v(x))
        return tuple(split_heads(y, self.head_dim) for y in projected)


class CrossAttention(Attention):
    """Attention to the image, plus gated attention of the same rotated queries to the text."""

    def __init__(self, config: UnifiedConfig):
        super().__init__(config)
        self.softcap, self.groups = config.softcap, config.num_heads // config.num_kv_heads
        kv_dim = config.num_kv_heads * config.head_dim
        self.text_k = nn.Linear(config.text_dim, kv_dim, bias=False)
        self.text_v = nn.Linear(config.text_dim, kv_dim, bias=False)
        self.text_k_norm = nn.LayerNorm(kv_dim, eps=1e-6) if config.qk_norm else nn.Identity()
        self.text_gate = nn.Parameter(torch.zeros(config.num_heads))

    def forward(self, x, text, rotary, present, text_mask):
        q, k, v = self.project(x)
        q, k = rotate(q, rotary), rotate(k, rotary)
        y = attend(q, k, v, seen=present, softcap=self.softcap)
        text_k, text_v = self.text_k_norm(self.text_k(text)), self.text_v(text)
        # query head j reads text head j modulo num_kv_heads
        text_k, text_v = (
            split_heads(z, self.head_dim).repeat(1, self.groups, 1, 1) for z in (text_k, text_v)
        )
        from_text = attend(q, text_k, text_v, seen=text_mask, softcap=0.0)
        gate = self.text_gate.tanh().repeat_interleave(self.head_dim)
        return self.out(y + gate * from_text)


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate x) * up x)."""

    def __init__(self, dim: int, width: int):
        super().__init__()
        self.gate = nn.Linear(dim, width, bias=False)
        self.up = nn.Linear(dim, width, bias=False)
        self.down = nn.Linear(width, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class SigmaEmbed(nn.Module):
    """Cosines and sines of 1000 sigma at 128 frequencies, and a two-layer network."""

    def __init__(self, dim: int):
        super().__init__()
        self.hidden = nn.Linear(256, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, sigma: Tensor) -> Tensor:
        steps = torch.arange(128, dtype=torch.float32, device=sigma.device)
        frequency = torch.exp(-math.log(10000.0) * steps / 128)
        angles = 1000.0 * sigma.float()[..., None] * frequency
        sinusoids = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return self.out(F.silu(self.hidden(sinusoids.to(self.hidden.weight.dtype))))


class Numbered(nn.Module):
    """A learned row for each number from 1; zeros for 0."""

    def __init__(self, num: int, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num, dim))

    def forward(self, number: Tensor) -> Tensor:
        return F.embedding(number, F.pad(self.weight, (0, 0, 1, 0)))


class RMSNorm(nn.Module):
    """x / rms(x) in float32, cast back, times a weight."""

    def __init__(self, dim: int, *, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(dim=-1, keepdim=True) + self.eps)
        return y.to(x.dtype) * self.weight


# --------------------------------------------------------------------- attention, places, patches


def attend(q: Tensor, k: Tensor, v: Tensor, *, seen: Tensor, softcap: float) -> Tensor:
    """Attention to the keys that are seen.

    Args:
      q: (B, H, n, K).
      k: (B, G, m, K); query head j reads head j // (H / G).
      v: as k.
      seen: (B, m), False for padding.
      softcap: scores become softcap * tanh(scores / softcap); 0 leaves them.

    Returns:
      (B, n, H K).
    """
    k, v = (y.repeat_interleave(q.shape[1] // y.shape[1], dim=1) for y in (k, v))
    seen = seen[:, None, None, :]
    if softcap:
        scores = q.float() @ k.float().transpose(-1, -2) * q.shape[-1] ** -0.5
        scores = (softcap * torch.tanh(scores / softcap)).masked_fill(~seen, float("-inf"))
        y = scores.softmax(dim=-1).to(v.dtype) @ v
    else:
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    return y.transpose(1, 2).flatten(2)


def split_heads(x: Tensor, head_dim: int) -> Tensor:
    """(B, n, H K) to (B, H, n, K)."""
    return x.unflatten(-1, (-1, head_dim)).transpose(1, 2)


def rotary_angles(
    grid: tuple[int, int, int], *, head_dim: int, theta: float, scale: float, device: torch.device
) -> Tensor:
    """Angles (N, K / 2) by which the pairs of a head turn.

    The grid is (frames, rows, columns). A third of the pairs belongs to each axis; pair i of an
    axis turns by scale * place * theta ** (-6 i / K).
    """
    steps = torch.arange(0, head_dim, 6, dtype=torch.float32, device=device)
    frequency = scale * theta ** (-steps / head_dim)
    place = torch.cartesian_prod(*(torch.arange(size, device=device) for size in grid))
    return (place.float()[:, :, None] * frequency).flatten(1)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turns adjacent pairs of every head of (B, H, N, K), in float32."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angles.cos(), angles.sin()
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return turned.flatten(-2).to(x.dtype)


def patchify(x: Tensor, *, patch: int) -> Tensor:
    """(B, F, C, h, w) to tokens (B, N, patch * patch * C): by frame, row and column; inside a token
    by row, column and channel.
    """
    x = x.unflatten(4, (-1, patch)).unflatten(3, (-1, patch))  # B F C rows p columns p
    return x.permute(0, 1, 3, 5, 4, 6, 2).flatten(4).flatten(1, 3)


def unpatchify(tokens: Tensor, *, grid: tuple[int, int, int], patch: int) -> Tensor:
    """Inverse of `patchify`; the grid is (frames, rows, columns)."""
    x = tokens.unflatten(1, grid).unflatten(-1, (patch, patch, -1))  # B F rows columns p p C
    return x.permute(0, 1, 6, 2, 4, 3, 5).flatten(5).flatten(3, 4)


def token_presence(
    sizes: Tensor | None,
    *,
    batch: int,
    grid: tuple[int, int, int],
    patch: int,
    device: torch.device,
) -> Tensor:
    """(B, N), True for tokens inside their frame's size (B, F, 2)."""
    if sizes is None:
        return torch.ones(batch, grid[0] * grid[1] * grid[2], dtype=torch.bool, device=device)
    if (sizes % patch).any():
        raise ValueError(f"sizes must be multiples of the patch, {patch}")
    rows, columns = (torch.arange(size, device=device) for size in grid[1:])
    height, width = (sizes // patch)[..., None, None].unbind(2)
    return ((rows[:, None] < height) & (columns < width)).flatten(1)


def pick(table: Tensor, number: Tensor) -> Tensor:
    """Rows (B, S, E) of a table (B, A, E) by numbers (B, S) from 1; any row for 0."""
    index = (number - 1).clamp(min=0)[..., None].expand(-1, -1, table.shape[-1])
    return table.gather(1, index)


# ---------------------------------------------------------------------------------------- sampling


@torch.no_grad()
def sample(
    model: UnifiedDiT,
    latents: Tensor,
    text_states: Tensor,
    text_mask: Tensor,
    *,
    empty_states: Tensor | None = None,
    empty_mask: Tensor | None = None,
    num_steps: int = 30,
    text_guidance: float = 1.0,
    image_guidance: float = 1.0,
    given: Tensor | None = None,
    text_names: Tensor | None = None,
    text_asset: Tensor | None = None,
    visual: Tensor | None = None,
    mask: Tensor | None = None,
    **frames: Tensor | None,
) -> Tensor:
    """Makes every frame that is not given, by Euler steps from noise to data.

    With X the text and V the picture and mask on the channels, the guided velocity is

        v(-, -) + image * (v(-, V) - v(-, -)) + text * (v(X, V) - v(-, V))

    Args:
      model: the denoiser.
      latents: (B, F, C, h, w), standard normal noise where a frame is made, clean latents where it
        is given.
      text_states: (B, S, E), as the next and those of `UnifiedDiT.forward`.
      text_mask: (B, S).
      empty_states: (B, S', E) states of the empty prompt, its end-of-text token; guidance needs it.
      empty_mask: (B, S').
      num_steps: Euler steps.
      text_guidance: scale of the text; 1 is none.
      image_guidance: scale of the picture on the channels; 1 is none.
      given, text_names, text_asset, visual, mask: as in `UnifiedDiT.forward`.
      **frames: roles, names, asset_features and sizes, as there.

    Returns:
      Clean latents (B, F, C, h, w); given frames unchanged.

    Raises:
      ValueError: guidance without what it needs.
    """
    given = torch.zeros(latents.shape[:2], device=latents.device) if given is None else given
    made = (given == 0)[:, :, None, None, None]
    words = {"text_states": text_states, "text_mask": text_mask}
    words |= {"text_names": text_names, "text_asset": text_asset}
    empty = {"text_states": empty_states, "text_mask": empty_mask}
    passes = [words | {"visual": visual, "mask": mask}]
    if text_guidance != 1.0 or image_guidance != 1.0:
        if empty_states is None or empty_mask is None:
            raise ValueError("guidance needs empty_states and empty_mask, of the empty prompt")
        passes.append(empty | {"visual": visual, "mask": mask})
    if image_guidance != 1.0:
        if visual is None or mask is None:
            raise ValueError("image_guidance is of pictures on channels: give visual and mask")
        blank = {"visual": torch.zeros_like(visual), "mask": torch.zeros_like(mask)}
        passes.append(empty | blank)
    levels, shift = torch.linspace(1.0, 0.0, num_steps + 1), model.config.flow.shift
    levels = shift * levels / (1.0 + (shift - 1.0) * levels)
    for now, after in itertools.pairwise(levels.tolist()):
        sigma = torch.where(given == 0, now, 0.0).to(latents.device)
        found = [model.velocity(latents, sigma, given=given, **p, **frames) for p in passes]
        velocity = found[0]
        if len(found) > 1:
            velocity = found[1] + text_guidance * (found[0] - found[1])
        if len(found) > 2:
            velocity = velocity + (image_guidance - 1.0) * (found[1] - found[2])
        latents = torch.where(made, latents + (after - now) * velocity, latents)
    return latents
