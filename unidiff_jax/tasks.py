"""The task registry: a task is data, not a code path.

A task names the frames of an example in order, says which of them are generated, and how its prompt
reads. Everything else (packing, noise, loss, sampling) follows from that. Frame 0 is the picture,
frame 1 and on its maps and sources, as in OneDiffusion; both directions of a pair (image to depth,
depth to image) are the same frames with another `generate`.

A frame is filled from the field of the same name of a source's item (`data_pipelines`), drawn as
RGB by its `codec` (`unidiff_jax.frames.CODECS`).

Prompts are format strings over the item's fields, in one of the styles `STYLES`. `token`
(OneDiffusion) begins with the task's token. `context` (UniReal section 3.1) has three parts: tags
that say what kind of example it is and are shared by tasks on purpose, a base prompt in plain words
that calls frames by name (IMG1, RES1: `frames.frame_names`), and the frames' roles, which are
embeddings and not words. `base` is that without the tags. `short` (UniVG) is the style `token` with
a short name in angle brackets in place of the token, which differs for both directions of a pair.
"""

import dataclasses
import string
from collections.abc import Mapping, Sequence
from typing import Any

from unidiff_jax.types import Kind, Role

STYLES = ("token", "context", "base", "short")
"""How prompts are written."""

PLACEHOLDER = "<p>"
"""In any prompt, the next reference object (UniVG); the same as the name of its frame."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameSpec:
    """One frame of a task.

    Attributes:
      field: the item's field that fills it, and the keyword under which a user gives it.
      codec: how the field becomes an RGB picture in [-1, 1] and back.
      role: why it is there.
      kind: what its patches hold.
    """

    field: str
    codec: str = "rgb"
    role: Role = Role.NONE
    kind: Kind = Kind.IMAGE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A task.

    Attributes:
      id: stable number (logged, stored in batches); 0 is padding.
      name: what configs and commands call it.
      frames: the sequence.
      generate: fields of the frames that are made; the others are given.
      prompt: format string over the item's text fields, in the style `token`.
      base: the same in the style `context`.
      tags: of the style `context`; an item may add its own in a field `tags`.
      short: its name in the style `short`; empty is `name`.
      region: field of the bool map that is true where the picture is to be made, for guidance on
        channels (`frames.Guide`); empty: everywhere.
      metric: primary metric in the miniature's evaluation.
      title: for tables and pages.
      repeats: so many frames at the end may come any number of times, such as reference objects,
        or the pictures and cameras of a scene; their fields hold lists. With clean conditions
        (`frames.PLANS`) only their first round can be generated, the others are given.
      optional: whether the frames that repeat may be missing.
    """

    id: int
    name: str
    frames: tuple[FrameSpec, ...]
    generate: tuple[str, ...]
    prompt: str
    metric: str
    title: str
    base: str
    tags: tuple[str, ...] = ()
    short: str = ""
    region: str = ""
    repeats: int = 0
    optional: bool = False

    def sequence(self, count: int) -> tuple[FrameSpec, ...]:
        """The frames of an example with `count` of them; raises ValueError for a wrong number."""
        more, once = count - len(self.frames), len(self.frames) - self.repeats
        if self.optional and count == once:
            return self.frames[:once]
        if more < 0 or (more and (not self.repeats or more % self.repeats)):
            rounds = f" and {self.repeats} more any number of times" if self.repeats else ""
            raise ValueError(
                f"task {self.name!r} has {len(self.frames)} frames{rounds}, got {count}"
            )
        return self.frames + self.frames[once:] * (more // self.repeats if self.repeats else 0)

    def fill(self, item: Mapping[str, Any]) -> list[tuple[FrameSpec, Any]]:
        """The frames of an example with their values.

        Raises:
          ValueError: repeated fields hold lists of different lengths, or none.
        """
        once = len(self.frames) - self.repeats
        filled = [(frame, item[frame.field]) for frame in self.frames[:once]]
        counts = {frame.field: len(item[frame.field]) for frame in self.frames[once:]}
        if len(set(counts.values())) > 1 or (0 in counts.values() and not self.optional):
            raise ValueError(f"task {self.name!r} needs fields of one length, got {counts}")
        for number in range(max(counts.values(), default=0)):
            filled += [(frame, item[frame.field][number]) for frame in self.frames[once:]]
        return filled

    @property
    def makes_rounds(self) -> bool:
        """Whether frames that repeat may be made, so that an example must say which are."""
        repeated = self.frames[len(self.frames) - self.repeats :]
        return any(f.field in self.generate or f.kind == Kind.RAY for f in repeated)

    def unrolled(self, made: Sequence[bool]) -> "Task":
        """The task of one example: its frames in order, of which those are made that `made` says.

        The fields of frames that repeat end in their round: `views.0`, `cameras.0`, `views.1`.
        """
        once = len(self.frames) - self.repeats
        frames = [
            frame
            if number < once
            else dataclasses.replace(
                frame, field=f"{frame.field}.{(number - once) // self.repeats}"
            )
            for number, frame in enumerate(self.sequence(len(made)))
        ]
        wanted = tuple(f.field for f, is_made in zip(frames, made, strict=True) if is_made)
        return dataclasses.replace(self, frames=tuple(frames), generate=wanted, repeats=0)

    def write(
        self,
        item: Mapping[str, Any],
        *,
        style: str = "token",
        base: str | None = None,
        tags: Sequence[str] | None = None,
    ) -> str:
        """The prompt of an item.

        Args:
          item: its text fields; in the style `context` its own `tags` too.
          style: one of `STYLES`.
          base: base prompt, in place of the task's.
          tags: in place of the task's and the item's; empty for none.

        Raises:
          ValueError: an unknown style, or one without the part that is given.
        """
        if style not in STYLES:
            raise ValueError(f"prompt style {style!r} is unknown; one of {', '.join(STYLES)}")
        for part, given, styles in (
            ("base prompt", base, ("context", "base")),
            ("tags", tags, ("context",)),
        ):
            if given is not None and style not in styles:
                raise ValueError(f"prompts of the style {style!r} have no {part}")
        if style == "token":
            return self.prompt.format_map(item).strip()
        if style == "short":
            words = self.prompt.partition("]]")[2].format_map(item)
            return f"{self.token(style)}{words}".strip()
        base = (self.base.format_map(item) if base is None else base).strip()
        if style == "base":
            return base
        tags = [*self.tags, *item.get("tags", ())] if tags is None else tags
        return f"{', '.join(tags)}: {base}" if tags else base

    def token(self, style: str) -> str:
        """The word by which a prompt of the style `token` or `short` begins."""
        return f"<{self.short or self.name}>" if style == "short" else self.prompt.split()[0]

    @property
    def given(self) -> tuple[str, ...]:
        """Fields of the frames that must be supplied."""
        return tuple(f.field for f in self.frames if f.field not in self.generate)

    @property
    def prompt_fields(self) -> tuple[str, ...]:
        """Text fields of the prompt, in both styles."""
        templates = (self.prompt, self.base)
        names = (n for t in templates for _, n, _, _ in string.Formatter().parse(t) if n)
        return tuple(dict.fromkeys(names))


_IMAGE = FrameSpec(field="image")
_DEPTH = FrameSpec(field="depth", codec="depth", role=Role.CONTROL)
_MASK = FrameSpec(field="mask", codec="mask", role=Role.CONTROL)
_LAYOUT = FrameSpec(field="layout", codec="colors", role=Role.CONTROL)
_HOLED = FrameSpec(field="holed", role=Role.CANVAS)
_EDITED = FrameSpec(field="edited")
_CHANGED = FrameSpec(field="changed", codec="mask", role=Role.CONTROL)
_SOURCE = FrameSpec(field="source", role=Role.CANVAS)
_LATER = FrameSpec(field="later")
_EARLIER = FrameSpec(field="earlier", role=Role.CANVAS)
_ASSET = FrameSpec(field="assets", role=Role.ASSET)
_VIEW = FrameSpec(field="views")
_CAMERA = FrameSpec(field="cameras", kind=Kind.RAY)
_BLURRED = FrameSpec(field="blurred", role=Role.CONTROL)
_SMALL = FrameSpec(field="small", role=Role.CONTROL)
_EDGES = FrameSpec(field="edges", role=Role.CONTROL)
_CONTOURS = FrameSpec(field="contours", role=Role.CONTROL)
_POSE = FrameSpec(field="pose", role=Role.CONTROL)
_SEMANTIC = FrameSpec(field="semantic", codec="colors", role=Role.CONTROL)


def _map_task(id: int, name: str, frame: FrameSpec, *, token: str, title: str) -> Task:
    """A picture from a map or a worse picture of it, and the caption (OneDiffusion, Table 1)."""
    return Task(
        id=id,
        name=name,
        title=title,
        frames=(_IMAGE, frame),
        generate=("image",),
        prompt=f"[[{token}]] {{caption}}",
        base="{caption}, after IMG1",
        tags=("with control map",),
        metric="psnr",
    )


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            id=1,
            name="text_to_image",
            title="Text to image",
            frames=(_IMAGE,),
            generate=("image",),
            prompt="[[text2image]] {caption}",
            short="t2i",
            base="{caption}",
            metric="caption_match",
        ),
        Task(
            id=2,
            name="depth",
            title="Image to depth",
            frames=(_IMAGE, _DEPTH),
            generate=("depth",),
            prompt="[[depth2image]]",
            base="the depth map of IMG1",
            tags=("perception task",),
            metric="object_depth_skill",
        ),
        Task(
            id=3,
            name="depth_to_image",
            title="Depth to image",
            frames=(_IMAGE, _DEPTH),
            generate=("image",),
            prompt="[[depth2image]] {caption}",
            base="{caption}, with the depth map IMG1",
            tags=("with control map",),
            metric="silhouette_iou",
        ),
        Task(
            id=4,
            name="segment",
            title="Referring segmentation",
            frames=(_IMAGE, _MASK),
            generate=("mask",),
            prompt="[[referring_segmentation]] {expression}",
            base="the mask of {expression} in IMG1",
            tags=("perception task",),
            metric="ciou",
        ),
        Task(
            id=5,
            name="edit",
            title="Instruction editing",
            frames=(_EDITED, _SOURCE),
            generate=("edited",),
            prompt="[[image_editing]] {instruction}",
            short="ie",
            base="{instruction} in IMG1",
            tags=("static scenario",),
            metric="edit_gain",
        ),
        Task(
            id=6,
            name="next_frame",
            title="Video frame pairs",
            frames=(_LATER, _EARLIER),
            generate=("later",),
            prompt="[[frame2frame]] {change}",
            base="{change} in IMG1",
            metric="edit_gain",
        ),
        Task(
            id=7,
            name="layout_to_image",
            title="Layout to image",
            frames=(_IMAGE, _LAYOUT),
            generate=("image",),
            prompt="[[boundingbox2image]] {caption}",
            short="lg",
            base="{caption}, in the boxes of IMG1",
            tags=("with control map",),
            metric="silhouette_iou",
        ),
        Task(
            id=8,
            name="inpaint",
            title="Inpainting",
            frames=(_IMAGE, _HOLED),
            generate=("image",),
            prompt="[[image_inpainting]] {caption}",
            base="{caption}, filling the hole in IMG1",
            region="hole",
            tags=("static scenario",),
            metric="hole_psnr",
        ),
        _map_task(9, "deblur", _BLURRED, token="deblurring", title="Deblurring"),
        # the paper trains it and names no token: ours
        _map_task(10, "upscale", _SMALL, token="upscaling", title="Upscaling"),
        _map_task(11, "edges_to_image", _EDGES, token="canny2image", title="Edges to image"),
        _map_task(12, "contours_to_image", _CONTOURS, token="hed2img", title="Contours to image"),
        _map_task(13, "pose_to_image", _POSE, token="pose2image", title="Pose to image"),
        _map_task(
            14, "semantic_to_image", _SEMANTIC, token="semanticmap2image", title="Classes to image"
        ),
        Task(
            id=15,
            name="identity",
            title="Pictures of one subject",
            frames=(_VIEW,),
            generate=("views",),
            prompt="[[faceid]] {captions}",
            base="{captions}",
            tags=("with reference object",),
            metric="identity",
            repeats=1,
        ),
        Task(
            id=16,
            name="subject",
            title="Subject-driven generation",
            frames=(_VIEW,),
            generate=("views",),
            prompt="[[subject_driven]] <item: {name}> {captions}",
            base="{name}: {captions}",
            tags=("with reference object",),
            metric="identity",
            repeats=1,
        ),
        Task(
            id=17,
            name="multiview",
            title="Views and cameras of a scene",
            frames=(_VIEW, _CAMERA),
            generate=("views",),
            prompt="[[multiview]] {caption}",
            base="{caption}",
            tags=("novel view",),
            metric="psnr",
            repeats=2,
        ),
        Task(
            id=18,
            name="customize",
            title="Objects in a new scene",
            frames=(_LATER, _ASSET),
            generate=("later",),
            prompt="[[subject_driven]] {references}: {caption}",
            base="{references}: {caption}",
            tags=("with reference object",),
            metric="identity",
            repeats=1,
        ),
        Task(
            id=19,
            name="insert",
            title="Object insertion",
            frames=(_LATER, FrameSpec(field="canvas", role=Role.CANVAS), _ASSET),
            generate=("later",),
            prompt="[[subject_driven]] {references} into the hole of the picture",
            base="put {references} into the hole of IMG1",
            region="hole",
            tags=("with reference object", "static scenario"),
            metric="identity",
            repeats=1,
        ),
        Task(
            id=20,
            name="edges",
            title="Image to edges",
            frames=(_IMAGE, _EDGES),
            generate=("edges",),
            prompt="[[canny2image]]",
            base="the edge map of IMG1",
            tags=("perception task",),
            metric="psnr",
        ),
        Task(
            id=21,
            name="edit_with_mask",
            title="Editing, and the mask of what changes",
            frames=(_EDITED, _CHANGED, _SOURCE),
            generate=("edited", "changed"),
            prompt="[[image_editing]] {instruction}, with the mask",
            base="{instruction} in IMG1; and in RES2 the mask of what changes",
            tags=("static scenario", "perception task"),
            metric="edit_gain",
        ),
        Task(
            id=22,
            name="pose",
            title="Image to pose",
            frames=(_IMAGE, _POSE),
            generate=("pose",),
            prompt="[[pose2image]]",
            base="the pose map of IMG1",
            tags=("perception task",),
            metric="psnr",
        ),
        Task(
            id=23,
            name="personalize",
            title="Identity-preserving generation",
            frames=(_LATER, _ASSET),
            generate=("later",),
            prompt="[[subject_driven]] {slots}",
            short="id",
            base="{slots}",
            tags=("with reference object",),
            metric="identity",
            repeats=1,
        ),
        Task(
            id=24,
            name="interleave",
            title="Text and pictures interleaved",
            frames=(_LATER, _ASSET),
            generate=("later",),
            prompt="[[interleaved]] {slots}",
            short="mm",
            base="{slots}",
            tags=("with reference object",),
            metric="identity",
            repeats=1,
            optional=True,
        ),
    )
}


def get_task(name: str) -> Task:
    """Looks a task up; a wrong name raises a KeyError that lists the right ones."""
    try:
        return TASKS[name]
    except KeyError:
        raise KeyError(f"unknown task {name!r}; tasks are: {', '.join(TASKS)}") from None
