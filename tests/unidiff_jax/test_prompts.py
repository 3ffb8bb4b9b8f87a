r"""The grammar of prompts with pictures, and where their pictures come from."""

import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from unidiff_jax.prompts import (
    ImageReference,
    format_prompt,
    interleave,
    parse_prompt,
    resolve_prompt,
)
from unidiff_jax.sample.images import InputError

FOX, BALL = ImageReference("fox.png"), ImageReference("ball.png")


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        (
            "<img>fox.png</img> holding <img>ball.png</img> in the snow",
            (FOX, " holding ", BALL, " in the snow"),
        ),
        ("a fox", ("a fox",)),
        ("", ()),
        ("<img> fox.png\n</img>", (FOX,)),
        ("<img>fox.png</img><img>fox.png</img>", (FOX, FOX)),
        ("a <b> & <IMG>fox</IMG>", ("a <b> & <IMG>fox</IMG>",)),
        ("<img>my fox (1).png</img>", (ImageReference("my fox (1).png"),)),
        # backslashes
        (r"the tag \<img>", ("the tag <img>",)),
        (r"\<img>fox\</img>", ("<img>fox</img>",)),
        (r"a\\<img>fox.png</img>", ("a\\", FOX)),
        (r"a\\\<img>", (r"a\<img>",)),
        (r"a\b \\ \n", (r"a\b \\ \n",)),
        (r"<img>a\<img>b</img>", (ImageReference("a<img>b"),)),
        ("<img>C:\\fox\\\\</img>", (ImageReference("C:\\fox\\"),)),
    ],
)
def test_tags(prompt, parts):
    assert parse_prompt(prompt) == parts


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (
            "a <img>fox.png in the snow",
            r"at character 3 <img> without its </img>: \.\.\.a <img>fox",
        ),
        ("a fox.png</img>", "at character 10 </img> without an <img>"),
        ("<img>fox.png</img></img>", "at character 19 </img> without an <img>"),
        ("a <img></img>", "at character 3 <img></img> without a reference"),
        ("a <img> \t</img>", "at character 3 <img></img> without a reference"),
        ("<img>a <img>fox.png</img></img>", "at character 8 <img> inside the <img> before it"),
        (r"<img>fox.png\</img>", "at character 1 <img> without its </img>"),
    ],
)
def test_faults_say_where_and_what_works(prompt, message):
    with pytest.raises(InputError, match=message) as error:
        parse_prompt(prompt)
    assert "write <img>fox.png</img>" in str(error.value)


def test_a_list_is_the_same():
    picture, array = Image.new("RGB", (2, 3)), np.zeros((3, 2, 3), np.uint8)
    path = pathlib.Path("fox.png")
    parts = parse_prompt([path, " holding ", FOX, "", " and", " <img>", picture, array])
    assert [type(part) for part in parts] == [
        ImageReference,
        str,
        ImageReference,
        str,
        ImageReference,
        ImageReference,
    ]
    assert parts[0].source is path and parts[4].source is picture and parts[5].source is array
    assert parts[3] == " and <img>"
    assert parse_prompt(parse_prompt("<img>fox.png</img> runs")) == (FOX, " runs")
    with pytest.raises(InputError, match=r"part 2 of the prompt is a dict; .*pathlib\.Path"):
        parse_prompt(["a", {}])


texts = st.text(alphabet="\\<>/img a", max_size=12) | st.sampled_from(["<img>", "\\</img>", "a\\"])
parts = st.lists(texts | texts.map(str.strip).filter(bool).map(ImageReference), max_size=6)


@given(parts)
def test_what_is_written_is_read_again(parts):
    parts = parse_prompt(parts)
    assert parse_prompt(format_prompt(parts)) == parts


def test_a_picture_without_a_name_cannot_be_written():
    assert format_prompt([ImageReference(pathlib.Path("a.png")), " x"]) == "<img>a.png</img> x"
    with pytest.raises(InputError, match="a Image has no name"):
        format_prompt([ImageReference(Image.new("RGB", (1, 1)))])


# ----------------------------------------------------------------------------------------- pictures


def colour(value):
    return Image.new("RGB", (4, 3), (value, 0, 0))


def red(part):
    return part.getpixel((0, 0))[0]


def test_names_and_files(tmp_path):
    colour(1).save(tmp_path / "fox.png")
    colour(2).save(tmp_path / "ball.png")
    names = {"fox": tmp_path / "fox.png", "ball.png": colour(3)}
    prompt = f"<img>fox</img> a <img>fox.png</img><img>ball.png</img><img>{tmp_path}/ball.png</img>"
    first, text, *others = resolve_prompt(parse_prompt(prompt), names=names, folder=tmp_path)
    assert text == " a " and [red(part) for part in (first, *others)] == [1, 1, 3, 2]
    given = [colour(4), np.full((2, 2, 3), 5, np.uint8), tmp_path / "ball.png", "end"]
    *pictures, text = resolve_prompt(parse_prompt(given), folder=None)
    assert text == "end" and [red(part) for part in pictures] == [4, 5, 2]


def test_a_reference_that_is_nothing(tmp_path):
    (tmp_path / "words.png").write_text("no picture")
    colour(1).save(tmp_path / "fox.png")

    def message(prompt, **settings):
        with pytest.raises(InputError) as error:
            resolve_prompt(parse_prompt(prompt), folder=tmp_path, **settings)
        return str(error.value)

    found = message("<img>fox.png</img> and <img>fx</img>", names={"fox": colour(1), "dog": 1})
    assert found.startswith("picture 2 of the prompt: 'fx' is not known: names are 'fox', 'dog'")
    assert f"no file {tmp_path}/fx" in found and found.endswith("did you mean 'fox'?")
    assert "no names are given" in message("<img>fx</img>")
    assert "picture 1 of the prompt" in message("<img>words.png</img>")
    assert "no such picture" in message([pathlib.Path("nowhere.png")])
    with pytest.raises(InputError, match="files are not allowed"):
        resolve_prompt(parse_prompt(f"<img>{tmp_path}/fox.png</img>"), folder=None)


class Letters:
    """A tokenizer whose ids are the letters' places in the alphabet, from 10; 1 is the end."""

    def encode(self, text):
        return [*(ord(letter) - ord("a") + 10 for letter in text), 1]


def test_interleaved_tokens():
    fox, ball = colour(1), colour(2)
    found = interleave([fox, "ab", ball, "c"], tokenizer=Letters(), num_queries=3, image_id=99)
    assert found.ids == [99, 99, 99, 10, 11, 99, 99, 99, 12, 1]
    assert found.query == [1, 2, 3, 0, 0, 4, 5, 6, 0, 0]
    assert found.pictures == [fox, ball]
    found = interleave([], tokenizer=Letters(), num_queries=3, image_id=99)
    assert (found.ids, found.query, found.pictures) == ([1], [0], [])
