"""The task registry: a task is data, not a code path.

A task names the frames of an example in order, says which of them are generated, and how its prompt
reads. Everything else (packing, noise, loss, sampling) follows from that. Frame 0 is the picture,
frame 1 and on its maps and sources, as in OneDiffusion; both directions of a pair (image to depth,
depth to image) are the same frames with another `generate`.

A frame is filled from the field of the same name of a source's item (`data_pipelines`), drawn as
RGB by its `codec` (`unidiff_jax.frames.CODECS`). The prompt is a format string over the item's
fields.
"""

import dataclasses
import string

from unidiff_jax.types import Kind, Role


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
      prompt: format string over the item's text fields.
      metric: primary metric in the miniature's evaluation.
      title: for tables and pages.
      repeats: whether an example may have the frames several times over, such as the pictures of
        one subject or the pictures and cameras of a scene; its fields then hold lists. With clean
        conditions (`frames.PLANS`) the first round is made and the others are given.
    """

    id: int
    name: str
    frames: tuple[FrameSpec, ...]
    generate: tuple[str, ...]
    prompt: str
    metric: str
    title: str
    repeats: bool = False

    def sequence(self, count: int) -> tuple[FrameSpec, ...]:
        """The frames of an example with `count` of them; raises ValueError for a wrong number."""
        rounds, rest = divmod(count, len(self.frames))
        if rest or not rounds or (rounds > 1 and not self.repeats):
            more = " or a multiple" if self.repeats else ""
            raise ValueError(f"task {self.name!r} has {len(self.frames)} frames{more}, got {count}")
        return self.frames * rounds

    @property
    def given(self) -> tuple[str, ...]:
        """Fields of the frames that must be supplied."""
        return tuple(f.field for f in self.frames if f.field not in self.generate)

    @property
    def prompt_fields(self) -> tuple[str, ...]:
        """Text fields of the prompt's template."""
        return tuple(name for _, name, _, _ in string.Formatter().parse(self.prompt) if name)


_IMAGE = FrameSpec(field="image")
_DEPTH = FrameSpec(field="depth", codec="depth", role=Role.CONTROL)
_MASK = FrameSpec(field="mask", codec="mask", role=Role.CONTROL)
_LAYOUT = FrameSpec(field="layout", role=Role.CONTROL)
_HOLED = FrameSpec(field="holed", role=Role.CANVAS)
_EDITED = FrameSpec(field="edited")
_SOURCE = FrameSpec(field="source", role=Role.CANVAS)
_LATER = FrameSpec(field="later")
_EARLIER = FrameSpec(field="earlier", role=Role.CANVAS)
_VIEW = FrameSpec(field="views")
_CAMERA = FrameSpec(field="cameras", kind=Kind.RAY)


def _map_task(id: int, name: str, field: str, *, token: str, title: str) -> Task:
    """A picture from a map or a worse picture of it, and the caption (OneDiffusion, Table 1)."""
    return Task(
        id=id,
        name=name,
        title=title,
        frames=(_IMAGE, FrameSpec(field=field, role=Role.CONTROL)),
        generate=("image",),
        prompt=f"[[{token}]] {{caption}}",
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
            metric="caption_match",
        ),
        Task(
            id=2,
            name="depth",
            title="Image to depth",
            frames=(_IMAGE, _DEPTH),
            generate=("depth",),
            prompt="[[depth2image]]",
            metric="object_depth_skill",
        ),
        Task(
            id=3,
            name="depth_to_image",
            title="Depth to image",
            frames=(_IMAGE, _DEPTH),
            generate=("image",),
            prompt="[[depth2image]] {caption}",
            metric="silhouette_iou",
        ),
        Task(
            id=4,
            name="segment",
            title="Referring segmentation",
            frames=(_IMAGE, _MASK),
            generate=("mask",),
            prompt="[[referring_segmentation]] {expression}",
            metric="ciou",
        ),
        Task(
            id=5,
            name="edit",
            title="Instruction editing",
            frames=(_EDITED, _SOURCE),
            generate=("edited",),
            prompt="[[image_editing]] {instruction}",
            metric="edit_gain",
        ),
        Task(
            id=6,
            name="next_frame",
            title="Video frame pairs",
            frames=(_LATER, _EARLIER),
            generate=("later",),
            prompt="[[frame2frame]] {change}",
            metric="edit_gain",
        ),
        Task(
            id=7,
            name="layout_to_image",
            title="Layout to image",
            frames=(_IMAGE, _LAYOUT),
            generate=("image",),
            prompt="[[boundingbox2image]] {caption}",
            metric="silhouette_iou",
        ),
        Task(
            id=8,
            name="inpaint",
            title="Inpainting",
            frames=(_IMAGE, _HOLED),
            generate=("image",),
            prompt="[[image_inpainting]] {caption}",
            metric="hole_psnr",
        ),
        _map_task(9, "deblur", "blurred", token="deblurring", title="Deblurring"),
        # the paper trains it and names no token: ours
        _map_task(10, "upscale", "small", token="upscaling", title="Upscaling"),
        _map_task(11, "edges_to_image", "edges", token="canny2image", title="Edges to image"),
        _map_task(12, "contours_to_image", "contours", token="hed2img", title="Contours to image"),
        _map_task(13, "pose_to_image", "pose", token="pose2image", title="Pose to image"),
        _map_task(
            14, "semantic_to_image", "semantic", token="semanticmap2image", title="Classes to image"
        ),
        Task(
            id=15,
            name="identity",
            title="Pictures of one subject",
            frames=(_VIEW,),
            generate=("views",),
            prompt="[[faceid]] {captions}",
            metric="identity",
            repeats=True,
        ),
        Task(
            id=16,
            name="subject",
            title="Subject-driven generation",
            frames=(_VIEW,),
            generate=("views",),
            prompt="[[subject_driven]] <item: {name}> {captions}",
            metric="identity",
            repeats=True,
        ),
        Task(
            id=17,
            name="multiview",
            title="Views and cameras of a scene",
            frames=(_VIEW, _CAMERA),
            generate=("views",),
            prompt="[[multiview]] {caption}",
            metric="psnr",
            repeats=True,
        ),
    )
}


def get_task(name: str) -> Task:
    """Looks a task up; a wrong name raises a KeyError that lists the right ones."""
    try:
        return TASKS[name]
    except KeyError:
        raise KeyError(f"unknown task {name!r}; tasks are: {', '.join(TASKS)}") from None
