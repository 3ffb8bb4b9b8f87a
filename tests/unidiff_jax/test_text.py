"""Prompts to tokens: frame names are tokens of their own."""

import json

import pytest
import tiny_clip

from unidiff_jax.config import ConfigError
from unidiff_jax.text import END, FRAME_NAMES, MAX_NAMES, load_tokenizer, train_tokenizer

TEXTS = ["a red cube", "the blue sphere from the left", "put it on a grey floor"] * 3


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    def make(words=(), extra_ids=0):
        folder = tmp_path_factory.mktemp("tokenizer")
        train_tokenizer(TEXTS, folder=folder, vocab_size=80, words=words, extra_ids=extra_ids)
        return load_tokenizer(folder)

    return make


def test_names_with_pieces_of_their_own(trained):
    tokenizer = trained(words=["IMG1", "IMG2", "RES1"])
    ids, names = tokenizer.encode_named("the cube from IMG2 on RES1")
    assert len(ids) == len(names) and ids[-1] == END and names[-1] == 0
    assert [n for n in names if n] == [2, MAX_NAMES + 1]
    assert "IMG2" in tokenizer.decode([ids[names.index(2)]])


def test_names_take_the_spare_ids_of_t5(trained):
    tokenizer = trained(extra_ids=100)
    ids, names = tokenizer.encode_named("IMG1 beside IMG1 and RES2")
    found = [i for i, n in zip(ids, names, strict=True) if n]
    last = tokenizer.vocab_size + 99
    assert found == [last, last, last - (MAX_NAMES + 1)]


def test_all_names_need_a_place(trained):
    assert trained(words=FRAME_NAMES).names_frames
    assert trained(extra_ids=len(FRAME_NAMES)).names_frames
    assert not trained(extra_ids=len(FRAME_NAMES) - 1).names_frames
    assert not trained(words=["IMG1"]).names_frames


def test_names_without_a_place_are_words(trained):
    tokenizer = trained()
    ids, names = tokenizer.encode_named("a red cube in IMG1")
    assert set(names) == {0, 1} and max(ids) < tokenizer.vocab_size


@pytest.mark.parametrize("text", ["a red cube", "", "IMG", "IMG0", "IMG11x", "the IMG"])
def test_texts_without_names(trained, text):
    tokenizer = trained(extra_ids=100)
    ids, names = tokenizer.encode_named(text)
    assert not any(names)
    if "0" not in text:
        assert ids == tokenizer.encode(text)


def test_names_beyond_the_table_are_words(trained):
    _, names = trained(extra_ids=100).encode_named("IMG99 RES11")
    assert not any(names)


# -------------------------------------------------------------------------------- CLIP's byte pairs


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bpe")
    size = tiny_clip.write_tokenizer(folder)
    return load_tokenizer(folder), size, folder


def test_clip_texts_are_start_pieces_end(clip):
    tokenizer, size, folder = clip
    start, end = size - 2, size - 1
    vocabulary = json.loads((folder / "vocab.json").read_text())
    assert tokenizer.kind == "clip" and tokenizer.vocab_size == size and tokenizer.end_id == end
    assert tokenizer.encode("") == [start, end]
    expected = [vocabulary[w] for w in ("red</w>", "cube</w>", "'", "s</w>", "a</w>")]
    assert tokenizer.encode("Red\n  CUBE's a") == [start, *expected, end]
    assert tokenizer.decode([*tokenizer.encode("Red\n  cube a"), end, end]) == "red cube a"


def test_clip_names_are_the_start_of_text(clip):
    tokenizer, size, _ = clip
    assert tokenizer.names_frames
    text = "the cube of IMG2, on RES1 IMG99"
    ids, names = tokenizer.encode_named(text)
    assert len(ids) == len(names) and names[0] == names[-1] == 0 and ids[-1] == size - 1
    assert [n for n in names if n] == [2, MAX_NAMES + 1]
    assert {i for i, n in zip(ids, names, strict=True) if n} == {size - 2}
    rest = [i for i, n in zip(ids, names, strict=True) if not n]
    assert rest == tokenizer.encode("the cube of , on IMG99")
    plain = tokenizer.encode_named("the cube [[depth2image]]")
    assert plain.ids == tokenizer.encode("the cube [[depth2image]]") and not any(plain.names)


def test_clip_folders(clip, tmp_path):
    tokenizer, _, folder = clip
    (folder / "config.json").write_text("{}")  # of the model, in a whole CLIP's folder
    tokenizer.save(tmp_path / "again")
    files = {file.name for file in (tmp_path / "again").iterdir()}
    assert files == {"vocab.json", "merges.txt"}
    again = load_tokenizer(tmp_path / "again")
    assert again.encode("a red cube") == tokenizer.encode("a red cube")
    with pytest.raises(FileNotFoundError, match=r"holds spiece\.model, a CLIP folder vocab"):
        load_tokenizer(tmp_path)
    (tmp_path / "again" / "vocab.json").write_text('{"a": 0, "<|endoftext|>": 1}')
    with pytest.raises(ConfigError, match=r"has no <\|startoftext\|>"):
        load_tokenizer(tmp_path / "again")


@pytest.mark.parametrize(
    "text", ["a red cube", "Isn't it?  two\tlines\n", "", "<|endoftext|> [[x]]"]
)
def test_clip_ids_are_those_of_transformers(clip, text):
    transformers = pytest.importorskip("transformers")
    tokenizer, _, folder = clip
    theirs = transformers.CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    assert tokenizer.encode(text) == theirs(text).input_ids
