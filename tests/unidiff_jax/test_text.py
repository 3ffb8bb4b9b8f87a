"""Prompts to tokens: frame names are tokens of their own."""

import pytest

from unidiff_jax.text import END, FRAME_NAMES, MAX_NAMES, Tokenizer, train_tokenizer

TEXTS = ["a red cube", "the blue sphere from the left", "put it on a grey floor"] * 3


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    def make(words=(), extra_ids=0):
        folder = tmp_path_factory.mktemp("tokenizer")
        train_tokenizer(TEXTS, folder=folder, vocab_size=80, words=words, extra_ids=extra_ids)
        return Tokenizer(folder)

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
