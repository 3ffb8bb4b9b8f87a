r"""Prompts with pictures between the words (UNIMO-G section 3.3).

    <img>fox.png</img> holding <img>ball.png</img> in the snow

Between `<img>` and `</img>` stands one reference: a name of the caller's mapping, or a file. Spaces
around it do not count; any number of pictures may stand anywhere. The same as a list, which may
hold pictures as well:

    [pathlib.Path("fox.png"), " holding ", PIL.Image.open("ball.png"), " in the snow"]

A tag with a backslash ahead of it is text: `\<img>` says <img>. With more backslashes each pair
says one, and the odd one makes the tag text; elsewhere a backslash is itself. Tags are in small
letters. In a list, strings are text as they are: nothing in them is a tag.
"""

import dataclasses
import difflib
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from unidiff_jax.outside import InputError, shown
from unidiff_jax.paths import AnyPath, as_path
from unidiff_jax.sample.images import open_picture
from unidiff_jax.tasks import PLACEHOLDER
from unidiff_jax.text import Tokenizer

_TAG = re.compile(r"(?<!\\)(\\*)(</?img>)")  # from the first backslash: others cost squares
_CLOSED = "write <img>fox.png</img>, or \\<img> where the letters themselves are meant"


@dataclasses.dataclass(frozen=True)
class ImageReference:
    """A place where a prompt has a picture.

    Attributes:
      source: a name or file from between tags, or what a list has there: a path, a PIL picture, or
        a uint8 array (h, w, 3).
    """

    source: Any


Part = str | ImageReference
ListPart = Part | os.PathLike | Image.Image | np.ndarray


def parse_prompt(prompt: str | Sequence[ListPart]) -> tuple[Part, ...]:
    r"""Parts of a prompt in their order; texts are not empty, and no two are neighbours.

    Args:
      prompt: with tags, or as a list; see the module's docstring.

    Raises:
      InputError: a tag that is not closed, not opened or inside another, an empty reference, or a
        list with something else in it.

    Example:
      >>> parse_prompt("<img>fox</img> in the snow")
      (ImageReference(source='fox'), ' in the snow')
      >>> parse_prompt(r"the tag \<img>")
      ('the tag <img>',)
    """
    if isinstance(prompt, str):
        return tuple(_parse_tags(prompt))
    parts: list[Part] = []
    for number, part in enumerate(prompt, start=1):
        if isinstance(part, ImageReference):
            parts.append(part)
        elif isinstance(part, os.PathLike | Image.Image | np.ndarray):
            parts.append(ImageReference(part))
        elif not isinstance(part, str):
            raise InputError(
                f"part {number} of the prompt is a {type(part).__name__}; a part is a str of "
                "words, a pathlib.Path, a PIL picture or a uint8 array (h, w, 3)"
            )
        elif part and parts and isinstance(parts[-1], str):
            parts[-1] += part
        elif part:
            parts.append(part)
    return tuple(parts)


def _parse_tags(text: str) -> list[Part]:
    parts: list[Part] = []
    read, place, opened = "", 0, None
    for match in _TAG.finditer(text):
        slashes, tag = match.groups()
        start = match.start(2)
        read += text[place : match.start()] + "\\" * (len(slashes) // 2)
        place = match.end()
        if len(slashes) % 2:
            read += tag
        elif tag == "<img>":
            if opened is not None:
                raise _fault(text, start, "<img> inside the <img> before it")
            if read:
                parts.append(read)
            read, opened = "", start
        else:
            if opened is None:
                raise _fault(text, start, "</img> without an <img> before it")
            if not read.strip():
                raise _fault(text, opened, "<img></img> without a reference")
            parts.append(ImageReference(read.strip()))
            read, opened = "", None
    if opened is not None:
        raise _fault(text, opened, "<img> without its </img>")
    read += text[place:]
    return [*parts, read] if read else parts


def _fault(text: str, start: int, what: str) -> InputError:
    ahead, behind = text[max(0, start - 20) : start], text[start : start + 30]
    return InputError(
        f"the prompt has at character {start + 1} {what}: ...{ahead}{behind}...; {_CLOSED}"
    )


def format_prompt(parts: Sequence[Part]) -> str:
    """The prompt with tags, so that `parse_prompt` gives the parts again.

    Raises:
      InputError: a picture that is neither a name nor a path cannot be written.
    """
    written: list[str] = []
    for part in parts:
        if isinstance(part, str):
            written.append(_escape(part))
            continue
        if not isinstance(part.source, str | os.PathLike):
            raise InputError(f"a {type(part.source).__name__} has no name to stand between tags")
        if written:
            written[-1] = _before_tag(written[-1])
        written.append(f"<img>{_before_tag(_escape(str(part.source)))}</img>")
    return "".join(written)


def _escape(text: str) -> str:
    return _TAG.sub(lambda match: 2 * match[1] + "\\" + match[2], text)


def _before_tag(text: str) -> str:
    """Doubles the backslashes at the end."""
    return text + "\\" * (len(text) - len(text.rstrip("\\")))


def resolve_prompt(
    parts: Sequence[Part],
    *,
    names: Mapping[str, Any] | None = None,
    folder: AnyPath | None = ".",
) -> tuple[str | Image.Image, ...]:
    """Parts with their pictures, RGB.

    Args:
      parts: from `parse_prompt`.
      names: picture by name, each a path, a PIL picture or a uint8 array (h, w, 3).
      folder: where files lie that are given relative; None forbids files between tags, as for
        prompts of strangers.

    Raises:
      InputError: a reference that is neither a name nor a file, or no picture; says which.
    """
    resolved: list[str | Image.Image] = []
    number = 0
    for part in parts:
        if isinstance(part, str):
            resolved.append(part)
            continue
        number += 1
        try:
            source = _find(part.source, names or {}, folder)
            resolved.append(open_picture(source))
        except InputError as error:
            raise InputError(f"picture {number} of the prompt: {error}") from None
    return tuple(resolved)


def _find(source: Any, names: Mapping[str, Any], folder: AnyPath | None) -> Any:
    if not isinstance(source, str):
        return source
    if source in names:
        return names[source]
    path = None if folder is None else as_path(folder) / source
    if path is not None and path.is_file():
        return path
    near = difflib.get_close_matches(source, names, n=1)
    known = f"names are {', '.join(map(repr, names))}" if names else "no names are given"
    hint = f"; did you mean {near[0]!r}?" if near else ""
    where = "files are not allowed" if path is None else f"there is no file {path}"
    raise InputError(f"{shown(source)} is not known: {known}, and {where}{hint}")


class Slots(NamedTuple):
    """A prompt as the task `interleave` takes it.

    Attributes:
      text: with `tasks.PLACEHOLDER` for each picture.
      sources: of the pictures, in order.
    """

    text: str
    sources: list[Any]


def to_slots(parts: Sequence[Part]) -> Slots:
    """Words and pictures apart.

    Raises:
      InputError: words that say the placeholder.

    Example:
      >>> to_slots(parse_prompt("<img>fox.png</img> in the snow"))
      Slots(text='<p> in the snow', sources=['fox.png'])
    """
    words = [part for part in parts if isinstance(part, str)]
    sources = [part.source for part in parts if isinstance(part, ImageReference)]
    if sources and any(PLACEHOLDER in word for word in words):
        raise InputError(f"the prompt has pictures and {PLACEHOLDER}, which stands for one")
    written = (part if isinstance(part, str) else PLACEHOLDER for part in parts)
    return Slots("".join(written), sources)


class Interleaved(NamedTuple):
    """Tokens of one prompt, as `models.multimodal` reads them.

    Attributes:
      ids: closed by the end of text.
      query: what each place shows: 0 for a word.
      pictures: in the order of the prompt.
    """

    ids: list[int]
    query: list[int]
    pictures: list[Image.Image]


def interleave(
    parts: Sequence[str | Image.Image], *, tokenizer: Tokenizer, num_queries: int, image_id: int
) -> Interleaved:
    """Tokens of a resolved prompt; each picture is `num_queries` places.

    Texts between pictures are tokenized each on its own.

    Args:
      parts: from `resolve_prompt`.
      tokenizer: of the text encoder.
      num_queries: places that a picture takes.
      image_id: id that stands there.
    """
    *_, end = tokenizer.encode("")
    ids: list[int] = []
    query: list[int] = []
    pictures: list[Image.Image] = []
    for part in parts:
        if isinstance(part, str):
            found = tokenizer.encode(part)[:-1]
            ids += found
            query += [0] * len(found)
        else:
            first = 1 + len(pictures) * num_queries
            ids += [image_id] * num_queries
            query += range(first, first + num_queries)
            pictures.append(part)
    return Interleaved([*ids, end], [*query, 0], pictures)
