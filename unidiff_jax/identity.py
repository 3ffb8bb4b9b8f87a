"""Identity encoders: pictures of a person or thing to vectors, near each other for one identity.

The vectors tell a model whom to draw (UniVG writes them over a placeholder of the prompt) and tell
an evaluation whether that was done. An encoder is chosen by the config's

    data.identity = {"encoder": "onnx", "path": "arcface.onnx"}

| encoder | path | what |
|---|---|---|
| `pixels` | empty | small picture and colour histogram; no weights |
| `onnx` | file | a user's network, run by onnxruntime on the CPU (extra `identity`) |
| `clip` | folder | the vision tower of a CLIP in Hugging Face's layout |
| `patches` | empty | no identity: the pixels, for `text.kind=patches` (`models.multimodal`) |
| `picture` | folder | no identity: the pixels, for `text.kind=blip2` of a folder's sizes |

`pixels` knows nothing of faces or things. It is there so that a run needs no file, and as the
floor below any network.

Retrieval of the 228 looks of held-out subjects at 64 pixels, in percent
(`data_pipelines.subjects.benchmark`). The gallery has one reference of each look; queries are other
drawings of the same looks, turned, mirrored and lit anew: references, or cut out of scenes.

| encoder | references, top-1 / top-5 | scenes, top-1 / top-5 | among a subject's 6 looks |
|---|---|---|---|
| chance | 0.4 / 2.2 | 0.4 / 2.2 | 17 |
| `pixels` | 60.5 / 86.8 | 58.3 / 89.0 | 64.9 |
| `onnx`, MobileNetV2 of ImageNet | 82.5 / 96.1 | 68.0 / 93.4 | 64.9 |

At 32 pixels `pixels` has 59.6 / 86.4, 57.0 / 86.0 and 61.4. No network for faces was at hand.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from unidiff_jax.config import ConfigError
from unidiff_jax.export.files import read_config
from unidiff_jax.outside import InputError, read_object
from unidiff_jax.paths import AnyPath, as_path
from unidiff_jax.sample.clip import CLIPImages

Pictures = UInt8[np.ndarray, "n h w 3"]
Vectors = Float[np.ndarray, "n d"]

GRID = 8
"""Pixels a side of the small picture of `PixelIdentity`."""

BINS = 4
"""Steps of each colour in its histogram."""

PATCHES = 2
"""Patches a side of `PatchPictures`."""

LAYOUTS, COLORS = ("nchw", "nhwc"), ("rgb", "bgr")


class IdentityEncoder(Protocol):
    """Maps RGB pictures to vectors of length 1, or to what a multimodal encoder reads of them.

    Attributes:
      dim: numbers of a vector.
    """

    dim: int

    def __call__(self, pictures: Pictures) -> Vectors: ...


class Places(NamedTuple):
    """How much of a prompt a picture takes.

    Attributes:
      words: places among the words.
      vectors: vectors of the encoder, one behind the other in what it returns; the places show them
        in turn, and those behind show the last.
    """

    words: int = 1
    vectors: int = 1


def places_of(encoder: IdentityEncoder) -> Places:
    """An encoder's attribute `places`; one vector in one place where it has none."""
    return getattr(encoder, "places", Places())


class PixelIdentity:
    """The picture at `GRID` x `GRID` pixels, and how often colours occur; needs no weights.

    Both parts have length sqrt(1/2). The small picture is of what differs from its mean colour; the
    histogram, of the square roots of the shares of `BINS` ** 3 colours, leaves white out, which is
    behind references.

    Example:
      >>> vectors = PixelIdentity()(pictures)  # (n, 256)
      >>> vectors @ vectors.T  # similarities
    """

    dim = 3 * GRID**2 + BINS**3

    def __call__(self, pictures: Pictures) -> Vectors:
        """Vectors of pictures of any size."""
        found = [self._vector(picture) for picture in pictures]
        return np.stack(found) if found else np.zeros((0, self.dim), np.float32)

    def _vector(self, picture: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "d"]:
        small = cv2.resize(picture, (GRID, GRID), interpolation=cv2.INTER_AREA)
        small = small.reshape(-1, 3).astype(np.float32)
        shape = (small - small.mean(axis=0)).ravel()
        flat = picture.reshape(-1, 3)
        bins = (flat[flat.min(axis=1) < 250] // (256 // BINS)).astype(np.int64)
        counts = np.bincount(bins @ (BINS**2, BINS, 1), minlength=BINS**3)
        parts = [_unit(shape), _unit(np.sqrt(counts))]
        return _unit(np.concatenate(parts)).astype(np.float32)


def _unit(values: np.ndarray) -> np.ndarray:
    """Vectors of length 1; zeros stay."""
    length = np.linalg.norm(values, axis=-1, keepdims=True)
    return values / np.where(length > 0, length, 1)


class PatchPictures:
    """The pixels themselves, for a multimodal encoder that is trained with the model.

    A picture is `PATCHES` ** 2 patches and, as the first vector, the whole of it, each at `GRID` x
    `GRID` pixels, with colours in [-1, 1] and a one at the vector's own number behind them.

    Example:
      >>> PatchPictures()(pictures).shape  # (n, 5 * 197)
    """

    dim = 3 * GRID**2 + 1 + PATCHES**2
    places = Places(1 + PATCHES**2, 1 + PATCHES**2)

    def __call__(self, pictures: Pictures) -> Vectors:
        """The vectors of each picture one behind the other; pictures are of any size."""
        found = [self._vectors(picture).ravel() for picture in pictures]
        width = self.places.vectors * self.dim
        return np.stack(found) if found else np.zeros((0, width), np.float32)

    def _vectors(self, picture: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "k d"]:
        side = PATCHES * GRID
        large = _resize(picture, side, side).reshape(PATCHES, GRID, PATCHES, GRID, 3)
        parts = large.swapaxes(1, 2).reshape(-1, GRID, GRID, 3)
        parts = np.concatenate([_resize(picture, GRID, GRID)[None], parts])
        colors = parts.reshape(len(parts), -1).astype(np.float32) / 127.5 - 1
        return np.concatenate([colors, np.eye(len(parts), dtype=np.float32)], axis=1)


class WholePictures:
    """Pixels as BLIP-2's vision tower takes them, before their colours are normalised.

    Example:
      >>> WholePictures("blip2-flan-t5-xl")(pictures).shape  # (n, 224 * 224 * 3), uint8
    """

    dim: int
    places: Places

    def __init__(self, folder: AnyPath):
        """Reads the sizes of a transformers folder; raises as `files.read_config`."""
        values = read_config(folder)
        self._size = int((values.get("vision_config") or {}).get("image_size", 224))
        self.dim = 3 * self._size**2
        self.places = Places(int(values.get("num_query_tokens", 32)), 1)

    def __call__(self, pictures: Pictures) -> UInt8[np.ndarray, "n d"]:
        """Pictures of any size, squeezed to a square by PIL's bicubic filter."""
        size = (self._size, self._size)
        found = [
            np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC)).ravel()
            for picture in pictures
        ]
        return np.stack(found) if found else np.zeros((0, self.dim), np.uint8)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How a network wants its pictures.

    Attributes:
      size: (height, width) in pixels.
      layout: `nchw` or `nhwc`.
      colors: `rgb` or `bgr`, the order of the channels.
      mean: of the channels in that order, in [0, 255], taken away first.
      std: of the same channels, divided by then.
      output: name of the tensor that is the embedding, an output of the network or one inside; the
        first output if empty.
    """

    size: tuple[int, int]
    layout: str = "nchw"
    colors: str = "rgb"
    mean: tuple[float, float, float] = (127.5, 127.5, 127.5)
    std: tuple[float, float, float] = (127.5, 127.5, 127.5)
    output: str = ""

    def __post_init__(self):
        checks = {
            "size": _are_numbers(self.size, 2, whole=True),
            "layout": self.layout in LAYOUTS,
            "colors": self.colors in COLORS,
            "mean": _are_numbers(self.mean, 3),
            "std": _are_numbers(self.std, 3) and 0 not in self.std,
            "output": isinstance(self.output, str),
        }
        works = {
            "size": [112, 112],
            "layout": " or ".join(LAYOUTS),
            "colors": " or ".join(COLORS),
            "mean": [127.5] * 3,
            "std": [127.5] * 3,
            "output": "embedding",
        }
        for name, fits in checks.items():
            if not fits:
                raise ConfigError(f"{name}={getattr(self, name)!r}; for example {works[name]}")


def _are_numbers(values: Any, count: int, *, whole: bool = False) -> bool:
    kind = int if whole else int | float
    return (
        isinstance(values, list | tuple)
        and len(values) == count
        and all(isinstance(v, kind) and not isinstance(v, bool) for v in values)
        and (not whole or min(values) > 0)
    )


ARCFACE = Preprocessing(size=(112, 112))
"""Of networks trained as ArcFace (arXiv:1801.07698) on aligned faces, those read as RGB."""

IMAGENET = Preprocessing(
    size=(224, 224), mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375)
)
"""Of most classifiers of ImageNet; name the tensor before the last layer as the output."""


class OnnxIdentity:
    """A network in an ONNX file.

    `FILE.json` beside `FILE.onnx` says how it wants its pictures, by the fields of
    `Preprocessing`:

        {"size": [112, 112], "layout": "nchw", "colors": "rgb",
         "mean": [127.5, 127.5, 127.5], "std": [127.5, 127.5, 127.5], "output": "embedding"}

    Pictures are resized to the network's size as they are. Align faces before.

    Example:
      >>> encoder = OnnxIdentity("w600k_r50.onnx", ARCFACE)
      >>> encoder(np.zeros((2, 112, 112, 3), np.uint8)).shape
      (2, 512)
    """

    dim: int

    def __init__(self, path: AnyPath, preprocessing: Preprocessing | None = None):
        """Loads the network and runs it once.

        Args:
          path: the file, local or in a bucket; its weights are inside.
          preprocessing: in place of the JSON beside it.

        Raises:
          ConfigError: onnxruntime is missing, a file is missing or no network, it wants other
            pictures than the preprocessing makes, or the output is no vector a picture.
        """
        try:
            import onnxruntime
        except ModuleNotFoundError:
            raise ConfigError(
                "onnxruntime is not installed; run: ./launch/environment.sh identity"
            ) from None
        path = as_path(path)
        self._how = preprocessing or read_preprocessing(path.with_suffix(".json"))
        try:
            network = path.read_bytes()
        except FileNotFoundError:
            raise ConfigError(f"no such file: {path}") from None

        def load(content: bytes, what: str) -> Any:
            try:
                return onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
            except Exception as error:  # onnxruntime's errors share no base class of their own
                raise ConfigError(f"{path} {what}: {_line(error)}") from None

        wanted = self._how.output
        self._session = load(network, "is no network that onnxruntime reads")
        if wanted and wanted not in {output.name for output in self._session.get_outputs()}:
            self._session = load(network + _as_output(wanted), f"has no tensor {wanted!r}")
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type != "tensor(float)":
            found = [(i.name, i.type, i.shape) for i in inputs]
            raise ConfigError(f"{path} must take one batch of float pictures, but takes {found}")
        self._input = inputs[0].name
        self._output = wanted or self._session.get_outputs()[0].name
        self._single = inputs[0].shape[0] == 1  # a batch of one is written into the file
        try:
            found = self._run(np.zeros((1, *self._how.size, 3), np.uint8))
        except Exception as error:
            raise ConfigError(
                f"{path} does not take the pictures of {self._how}: {_line(error)}"
            ) from None
        if found.ndim != 2:
            raise ConfigError(
                f"{path}: {self._output!r} has shape {found.shape} for one picture and is no "
                "vector; name another tensor as the output"
            )
        self.dim = found.shape[1]

    def __call__(self, pictures: Pictures) -> Vectors:
        """Vectors of pictures of any size."""
        height, width = self._how.size
        if not len(pictures):
            return np.zeros((0, self.dim), np.float32)
        fitted = np.stack([_resize(picture, height, width) for picture in pictures])
        parts = np.split(fitted, len(fitted)) if self._single else [fitted]
        return _unit(np.concatenate([self._run(part) for part in parts])).astype(np.float32)

    def _run(self, pictures: Pictures) -> np.ndarray:
        if self._how.colors == "bgr":
            pictures = pictures[..., ::-1]
        mean, std = (np.array(v, np.float32) for v in (self._how.mean, self._how.std))
        values = (pictures - mean) / std
        if self._how.layout == "nchw":
            values = values.transpose(0, 3, 1, 2)
        values = np.ascontiguousarray(values, np.float32)
        (found,) = self._session.run([self._output], {self._input: values})
        while found.ndim > 2 and found.shape[-1] == 1:  # (n, d, 1, 1) of a pooling layer
            found = found[..., 0]
        return np.asarray(found, np.float32)


class ClipIdentity:
    """CLIP's embeddings of pictures, which UniVG takes of faces.

    Example:
      >>> ClipIdentity("clip-vit-large-patch14").dim
      768
    """

    dim: int

    def __init__(self, folder: AnyPath):
        """Loads the vision tower of a Hugging Face folder; raises as `CLIPImages.load`."""
        self._images = CLIPImages.load(folder)
        self.dim = self._images.config.projection_dim or self._images.config.hidden_size

    def __call__(self, pictures: Pictures) -> Vectors:
        """Vectors of pictures of any size."""
        if not len(pictures):
            return np.zeros((0, self.dim), np.float32)
        found = self._images.embed([Image.fromarray(picture) for picture in pictures])
        return _unit(np.asarray(found)).astype(np.float32)


def _resize(picture: UInt8[np.ndarray, "h w 3"], height: int, width: int) -> np.ndarray:
    smaller = height * width < picture.shape[0] * picture.shape[1]
    how = cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
    return cv2.resize(picture, (width, height), interpolation=how)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _as_output(name: str) -> bytes:
    """What appended to an ONNX file makes a tensor inside it an output.

    Protocol buffers merge when they are written after each other, so this is a ModelProto with
    `graph.output[].name` alone (fields 7, 12 and 1); the tensor's type is inferred.
    """
    return _field(7, _field(12, _field(1, name.encode())))


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited field."""
    length, size = b"", len(content)
    while size > 0x7F:
        length, size = length + bytes([size & 0x7F | 0x80]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


def read_preprocessing(path: AnyPath) -> Preprocessing:
    """The JSON beside an ONNX file.

    Raises:
      ConfigError: it is missing, or has an unknown or wrong field.
    """
    try:
        fields = read_object(path)
    except FileNotFoundError:
        example = json.dumps(dataclasses.asdict(ARCFACE))
        raise ConfigError(f"{path} is missing; for a network like ArcFace: {example}") from None
    except InputError as error:
        raise ConfigError(str(error)) from None
    try:
        return Preprocessing(**fields)
    except (TypeError, ConfigError) as error:
        raise ConfigError(f"{path}: {error}") from None


IDENTITY_ENCODERS: dict[str, Callable[[str], IdentityEncoder]] = {
    "pixels": lambda path: PixelIdentity(),
    "onnx": OnnxIdentity,
    "clip": ClipIdentity,
    "patches": lambda path: PatchPictures(),
    "picture": WholePictures,
}
"""Encoders by name: what makes one from the config's path."""


def make_identity_encoder(settings: Mapping[str, Any]) -> IdentityEncoder:
    """The encoder of the config's `data.identity`.

    Args:
      settings: `encoder`, a name of `IDENTITY_ENCODERS`, and `path`, empty for `pixels` and
        `patches`.

    Raises:
      ConfigError: an unknown encoder, a path too many or too few, or what the encoder raises.

    Example:
      >>> make_identity_encoder({"encoder": "pixels", "path": ""}).dim
      256
    """
    name, path = settings["encoder"], settings["path"]
    if name not in IDENTITY_ENCODERS:
        raise ConfigError(
            f"data.identity.encoder={name!r} is unknown; one of {', '.join(IDENTITY_ENCODERS)}"
        )
    if (name in ("pixels", "patches")) != (not path):
        takes = "takes no path" if path else "needs a path; for example weights/arcface.onnx"
        raise ConfigError(f"data.identity.path={path!r}: the encoder {name!r} {takes}")
    return IDENTITY_ENCODERS[name](path)
