"""Describers that look at one frame of a shot, with pretrained models of transformers.

    describer = Kosmos2Describer("checkpoints/kosmos-2-patch14-224")
    describer.describe(shot).entities

UniReal (section 3.2) takes the names and boxes of Kosmos-2's grounded caption. Florence-2 does the
same in two steps, and Grounding DINO finds things that are named already. All describe one frame,
by default the middle one, and prefer the caption that the data have (`Sidecar`) to one of a single
frame, which cannot say what happens.

Needs the extra `torch`. Folders are in Hugging Face's layout with safetensors (`checkpoints`):
`microsoft/kosmos-2-patch14-224`, `florence-community/Florence-2-large`,
`IDEA-Research/grounding-dino-base` or others of the same classes.
"""

import abc
import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple, get_args

from PIL import Image

from data_pipelines.curate.checkpoints import Path, Pretrained, load_model, load_processor
from data_pipelines.curate.clips import ClipError, Shot
from data_pipelines.curate.describe import (
    Description,
    Entity,
    caption_from_names,
    clip_box,
    given_caption,
    given_names,
)

CaptionFrom = Literal["given", "model"]

_CAPTION = "<MORE_DETAILED_CAPTION>"
_GROUNDING = "<CAPTION_TO_PHRASE_GROUNDING>"
# Florence-2 counts in thousandths. Its processor makes whole pixels of the middles of these bins,
# and in a picture of twice as many pixels they are whole.
_FLORENCE_SIZE = (2000, 2000)
# Kosmos-2's processor makes up such a name where a box has no phrase.
_NAMELESS = "<patch_index_"


class Loaded(NamedTuple):
    """A model of transformers with its processor."""

    model: Any
    processor: Any


class FrameDescriber(Pretrained):
    """Describes one frame of a shot."""

    def __init__(
        self,
        folder: Path,
        *,
        at: float = 0.5,
        caption: CaptionFrom = "given",
        device: str | None = None,
    ):
        """Remembers the settings; nothing is loaded before the first shot.

        Args:
          folder: of the checkpoint.
          at: which frame, from 0, the shot's first, to 1, its last: frame int(at * (T - 1)) of T.
          caption: `given`, the sidecar file's where it has one; or `model`, always the model's own.
          device: see `checkpoints.Pretrained`.

        Raises:
          ValueError: a setting is out of its range.
        """
        super().__init__(folder, device=device)
        if not 0 <= at <= 1:
            raise ValueError(f"at is {at}; it must be in [0, 1], such as 0.5 for the middle")
        if caption not in get_args(CaptionFrom):
            raise ValueError(f"caption is {caption!r}; use one of {get_args(CaptionFrom)}")
        self.at = at
        self.caption = caption

    def describe(self, shot: Shot) -> Description:
        """The shot's caption, and the entities of one frame.

        Raises:
          CheckpointError: the folder has no such checkpoint.
          ClipError: `no caption`: the data have none and the model made none; or `bad sidecar`.
        """
        frame = int(self.at * (len(shot.frames) - 1))
        picture = Image.fromarray(shot.frames[frame])
        given = given_caption(shot.sidecar) if self.caption == "given" else None
        caption, boxes = self._look(picture, given, shot)
        if not caption:
            raise ClipError("no caption", f"{type(self).__name__} has no caption for the shot")
        return Description(caption, _entities(boxes, frame=frame))

    @abc.abstractmethod
    def _look(self, picture: Image.Image, given: str | None, shot: Shot) -> "Look":
        """What is seen in a picture of which a caption is given, or not."""


class Look(NamedTuple):
    """What a model says of a picture.

    Attributes:
      caption: of the picture; empty without.
      boxes: names with left, top, right, bottom as shares of the picture, as the model gave them.
    """

    caption: str
    boxes: Sequence[tuple[str, Sequence[float]]]


class Kosmos2Describer(FrameDescriber):
    """Kosmos-2: a caption with a box for each phrase that names a thing (arXiv:2306.14824)."""

    def __init__(
        self, folder: Path, *, prompt: str = "An image of", tokens: int = 128, **settings: Any
    ):
        """As `FrameDescriber`, and:

        Args:
          folder: of the checkpoint.
          prompt: that the model goes on from; it is not part of the caption. "Describe this image
            in detail:" makes a longer one.
          tokens: at most so many are generated.
          settings: of `FrameDescriber`.
        """
        super().__init__(folder, **settings)
        self.prompt = prompt
        self.tokens = tokens

    def _load(self) -> Loaded:
        from transformers import Kosmos2ForConditionalGeneration, Kosmos2Processor

        model = load_model(
            Kosmos2ForConditionalGeneration,
            self.folder,
            model_types=["kosmos-2"],
            device=self.device,
        )
        return Loaded(model, load_processor(Kosmos2Processor, self.folder))

    def _look(self, picture: Image.Image, given: str | None, shot: Shot) -> Look:
        model, processor = self.loaded
        side = model.config.vision_config.image_size
        inputs = processor(
            images=picture,
            text=f"<grounding>{self.prompt}",
            num_image_tokens=model.config.latent_query_num,
            # Boxes are of what the model sees: in training whole pictures made square, which a
            # processor of CLIP cuts to their middle unless its file says so.
            size={"height": side, "width": side},
            do_center_crop=False,
            return_tensors="pt",
        ).to(model.device)
        tokens = model.generate(**inputs, max_new_tokens=self.tokens, do_sample=False)
        look = self.read(processor.batch_decode(tokens, skip_special_tokens=True)[0])
        return look._replace(caption=given or look.caption)

    def read(self, generated: str) -> Look:
        """What a generated text with `<patch_index_...>` tokens says."""
        caption, entities = self.loaded.processor.post_process_generation(generated)
        boxes = [(name, box) for name, _, boxes in entities for box in boxes]
        named = [(name, box) for name, box in boxes if not name.startswith(_NAMELESS)]
        return Look(caption.removeprefix(self.prompt).strip(), named)


class Florence2Describer(FrameDescriber):
    """Florence-2: a caption, then the boxes of its phrases (arXiv:2311.06242).

    The phrases of a given caption are found the same way. Names keep ASCII letters alone: that is
    all that the model's processor lets through.
    """

    def __init__(self, folder: Path, *, tokens: int = 1024, beams: int = 3, **settings: Any):
        """As `FrameDescriber`, and:

        Args:
          folder: of the checkpoint, of the class in transformers (`florence-community/...`); the
            first releases (`microsoft/...`) are of code of their own.
          tokens: at most so many are generated in each step.
          beams: of the search.
          settings: of `FrameDescriber`.
        """
        super().__init__(folder, **settings)
        self.tokens = tokens
        self.beams = beams

    def _load(self) -> Loaded:
        from transformers import Florence2ForConditionalGeneration, Florence2Processor

        model = load_model(
            Florence2ForConditionalGeneration,
            self.folder,
            model_types=["florence2"],
            device=self.device,
        )
        return Loaded(model, load_processor(Florence2Processor, self.folder))

    def _look(self, picture: Image.Image, given: str | None, shot: Shot) -> Look:
        caption = given or self.read_caption(self._generate(picture, _CAPTION))
        # Angle brackets would be read as one of the model's own tokens.
        plain = re.sub(r"[<>]", " ", caption).strip()
        if not plain:
            return Look(caption, [])
        return Look(caption, self.read_boxes(self._generate(picture, f"{_GROUNDING}{plain}")))

    def _generate(self, picture: Image.Image, prompt: str) -> str:
        model, processor = self.loaded
        inputs = processor(images=picture, text=prompt, return_tensors="pt").to(model.device)
        longest = model.config.text_config.max_position_embeddings
        if inputs["input_ids"].shape[1] > longest:
            raise ClipError(
                "caption too long",
                f"picture and caption take {inputs['input_ids'].shape[1]} tokens; {self.folder} "
                f"has room for {longest}",
            )
        tokens = model.generate(
            **inputs, max_new_tokens=self.tokens, num_beams=self.beams, do_sample=False
        )
        return processor.batch_decode(tokens, skip_special_tokens=False)[0]

    def read_caption(self, generated: str) -> str:
        """The caption in a generated text."""
        return self.loaded.processor.post_process_generation(generated, task=_CAPTION)[_CAPTION]

    def read_boxes(self, generated: str) -> list[tuple[str, Sequence[float]]]:
        """Names and boxes, in shares, in a generated text with `<loc_...>` tokens."""
        found = self.loaded.processor.post_process_generation(
            generated, task=_GROUNDING, image_size=_FLORENCE_SIZE
        )[_GROUNDING]
        width, height = _FLORENCE_SIZE
        scale = (width, height, width, height)
        return [
            (name, [x / side for x, side in zip(box, scale, strict=True)])
            for name, box in zip(found["labels"], found["bboxes"], strict=True)
        ]


class GroundingDinoDescriber(FrameDescriber):
    """Grounding DINO: the boxes of things that are named already (arXiv:2303.05499).

    It looks for `names`; without them for the names in the sidecar file, whose boxes are not
    needed; without these for whatever the given caption names: the model itself finds the phrases,
    as in training. It writes no captions: without a given one it is "a video of" what was found.
    """

    def __init__(
        self,
        folder: Path,
        *,
        names: Sequence[str] = (),
        threshold: float = 0.35,
        text_threshold: float = 0.25,
        most: int = 16,
        at: float = 0.5,
        device: str | None = None,
    ):
        """As `FrameDescriber`, and:

        Args:
          folder: of the checkpoint: Grounding DINO or MM Grounding DINO.
          names: to look for in every shot, such as ("a dog", "a red ball").
          threshold: boxes below this score, in [0, 1], are left out.
          text_threshold: words of a caption below it are no part of a box's name.
          most: only so many boxes, the best.
          at: which frame, see `FrameDescriber`.
          device: see `checkpoints.Pretrained`.

        Raises:
          ValueError: a setting is out of its range, or a name is empty.
        """
        super().__init__(folder, at=at, device=device)
        if isinstance(names, str) or not all(map(_plain, names)):
            raise ValueError(f'names is {names!r}; use a list of words such as ["a dog"]')
        if not (0 <= threshold <= 1 and 0 <= text_threshold <= 1 and most > 0):
            raise ValueError("threshold and text_threshold must be in [0, 1], most above 0")
        self.names = tuple(names)
        self.threshold = threshold
        self.text_threshold = text_threshold
        self.most = most

    def _load(self) -> Loaded:
        from transformers import AutoModelForZeroShotObjectDetection, GroundingDinoProcessor

        model = load_model(
            AutoModelForZeroShotObjectDetection,
            self.folder,
            model_types=["grounding-dino", "mm-grounding-dino"],
            device=self.device,
        )
        return Loaded(model, load_processor(GroundingDinoProcessor, self.folder))

    def _look(self, picture: Image.Image, given: str | None, shot: Shot) -> Look:
        names = self.names or [name for name in given_names(shot.sidecar) if _plain(name)]
        if names:
            found = self._find_names(picture, names)
        elif given:
            found = self._find_phrases(picture, given)
        else:
            raise ClipError("no caption", "neither names nor a caption say what to look for")
        caption = given or caption_from_names(x.name for x in found) or ""
        return Look(caption, [(x.name, x.box) for x in found])

    def _find_names(self, picture: Image.Image, names: Sequence[str]) -> "list[_Found]":
        """Each box has the name with the highest token; the prompt is "a dog. a red ball."."""
        prompt, spans = "", []
        for name in map(_plain, names):
            spans.append((len(prompt), len(prompt) + len(name)))
            prompt += f"{name}. "
        detected = self._detect(picture, prompt.rstrip())
        places = [
            [i for i, (a, b) in enumerate(detected.characters) if first <= a < b <= last]
            for first, last in spans
        ]
        found = []
        for scores, box in zip(detected.scores, detected.boxes, strict=True):
            # The tokenizer may drop all of a name, such as odd signs.
            best = [max((scores[i] for i in place), default=0.0) for place in places]
            if max(best) > self.threshold:
                found.append(_Found(max(best), names[best.index(max(best))], box))
        return self._best(found)

    def _find_phrases(self, picture: Image.Image, caption: str) -> "list[_Found]":
        """A box's name are the words of the caption that it answers to."""
        prompt = " ".join(caption.lower().split()).rstrip(".") + "."
        detected = self._detect(picture, prompt)
        decode = self.loaded.processor.tokenizer.decode
        found = []
        for scores, box in zip(detected.scores, detected.boxes, strict=True):
            # Special tokens have no characters. transformers leaves [SEP] in names.
            words = [
                token
                for token, score, (a, b) in zip(
                    detected.tokens, scores, detected.characters, strict=True
                )
                if score > self.text_threshold and a < b
            ]
            name = decode(words).strip(" .")
            if max(scores) > self.threshold and name:
                found.append(_Found(max(scores), name, box))
        return self._best(found)

    def _detect(self, picture: Image.Image, prompt: str) -> "_Detected":
        import torch

        model, processor = self.loaded
        inputs = processor(images=picture, text=prompt, return_tensors="pt").to(model.device)
        longest, length = model.config.max_text_len, inputs["input_ids"].shape[1]
        if length > longest:
            raise ClipError(
                "caption too long",
                f"the names or the caption take {length} tokens; {self.folder} reads {longest}",
            )
        with torch.inference_mode():
            outputs = model(**inputs)
        encoding = processor.tokenizer(prompt, return_offsets_mapping=True)
        return _Detected(
            encoding["input_ids"],
            encoding["offset_mapping"],
            outputs.logits[0, :, :length].sigmoid().tolist(),
            [
                (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
                for x, y, w, h in outputs.pred_boxes[0].tolist()
            ],
        )

    def _best(self, found: "list[_Found]") -> "list[_Found]":
        return sorted(found, key=lambda x: -x.score)[: self.most]


class _Detected(NamedTuple):
    """What Grounding DINO says of a picture and a prompt of n tokens.

    Attributes:
      tokens: of the prompt, (n,).
      characters: first and last plus one in the prompt, of each token; equal for special tokens.
      scores: in [0, 1], (boxes, n).
      boxes: left, top, right, bottom as shares of the picture.
    """

    tokens: Sequence[int]
    characters: Sequence[tuple[int, int]]
    scores: Sequence[Sequence[float]]
    boxes: Sequence[Sequence[float]]


class _Found(NamedTuple):
    score: float
    name: str
    box: Sequence[float]


def _entities(boxes: Iterable[tuple[str, Sequence[float]]], *, frame: int) -> list[Entity]:
    """Named boxes, cut to the picture; models also give boxes without an area, left out here."""
    cut = [(name.strip(), clip_box(box)) for name, box in boxes]
    return [Entity(name, box, frame) for name, box in cut if name and box is not None]


def _plain(name: str) -> str:
    """A name as the prompt has it, where full stops and question marks separate names."""
    return " ".join(re.sub(r"[.?]", " ", name.lower()).split())
