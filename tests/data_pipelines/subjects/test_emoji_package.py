"""Reading the emoji packages, and what their names become in sentences."""

import emoji_packages
import numpy as np
import pytest

from data_pipelines.subjects import names
from data_pipelines.subjects.package import PackageError, list_subjects, read_look


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    return emoji_packages.write_packages(tmp_path_factory.mktemp("packages"))


def test_a_subject_is_an_emoji_and_tones_are_its_looks(packages):
    found = {subject.name: subject for subject in list_subjects(**packages)}
    assert set(found) == set(emoji_packages.EMOJI)
    for name, subject in found.items():
        character, group, *_ = emoji_packages.EMOJI[name]
        assert (subject.emoji, subject.group) == (character, group)
        assert len(subject.looks) == (6 if name in emoji_packages.TONED else 1)
        tones = [tone for tone in emoji_packages.TONES if tone in subject.looks[0].stem]
        assert not tones
    assert [path.stem for path in found["woman cook"].looks[1:]] == [
        f"1f469-{tone}-200d-1f373" for tone in emoji_packages.TONES
    ]


def test_a_look_fills_its_square_and_hides_nothing_in_its_colours(packages):
    found = {subject.name: subject for subject in list_subjects(**packages)}
    for name in ("fox", "owl", "umbrella", "pizza"):  # WebP and PNG
        look = read_look(found[name].looks[0], size=25)
        seen = look[..., 3] >= 128
        rows, columns = seen.any(axis=1).nonzero()[0], seen.any(axis=0).nonzero()[0]
        assert max(np.ptp(rows), np.ptp(columns)) == 24
        assert abs((rows[0] + rows[-1]) - 24) <= 1 and abs((columns[0] + columns[-1]) - 24) <= 1
        assert (look[..., :3] <= look[..., 3:]).all()  # no green from around it
        rgb = emoji_packages.EMOJI[name][2][::-1]
        assert np.abs(look[12, 12, :3].astype(int) - rgb).max() <= 1


def test_packages_that_are_none(packages, tmp_path):
    with pytest.raises(PackageError, match="assets is no folder; unpack @lobehub/fluent-emoji-3d"):
        list_subjects(tmp_path, packages["names"])
    with pytest.raises(PackageError, match=r"data-by-emoji.json is missing; unpack unicode-emoji"):
        list_subjects(packages["emoji"], tmp_path)
    (tmp_path / "data-by-emoji.json").write_text('{"🦊": {"slug": "fox"}}')
    with pytest.raises(PackageError, match="is damaged"):
        list_subjects(packages["emoji"], tmp_path)
    (tmp_path / "assets").mkdir()
    with pytest.raises(PackageError, match="holds no picture that"):
        list_subjects(tmp_path, packages["names"])
    (tmp_path / "assets" / "fox.png").touch()
    with pytest.raises(PackageError, match="is not named by code points"):
        list_subjects(tmp_path, packages["names"])
    with pytest.raises(PackageError, match=r"fox.png cannot be read: .* is no PNG"):
        read_look(tmp_path / "assets" / "fox.png", size=8)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("fox", "a fox"),
        ("owl", "an owl"),
        ("unicorn", "a unicorn"),
        ("hourglass done", "an hourglass"),
        ("one-piece swimsuit", "a one-piece swimsuit"),
        ("OK hand", "an OK hand"),
        ("grapes", "grapes"),
        ("cactus", "a cactus"),
        ("bread", "bread"),
        ("meat on bone", "meat on bone"),
        ("ear of corn", "an ear of corn"),
        ("man lifting weights", "a man lifting weights"),
        ("women holding hands", "women holding hands"),
        ("skull and crossbones", "a skull and crossbones"),
        ("Santa Claus", "Santa Claus"),
        ("mount fuji", "Mount Fuji"),
        ("Tokyo tower", "the Tokyo tower"),
        ("nine o’clock", "a clock at nine o'clock"),  # noqa: RUF001
        ("ten-thirty", "a clock at ten-thirty"),
        ("woman red hair", "a woman with red hair"),
        ("man beard", "a man with a beard"),
        ("person bald", "a bald person"),
    ],
)
def test_phrases(name, said):
    assert names.phrase(names.to_words(name)) == said


def test_names_that_are_no_things():
    assert names.to_words("foggy") is None
    assert names.to_words("family man, woman, boy") is None


def test_kinds_join_what_looks_alike():
    kinds = [
        ("cook", "woman cook", "man cook"),
        ("black cat", "cat", "cat face"),
        ("mermaid", "merman", "merperson"),
        ("first quarter moon", "full moon face"),
        ("clock at nine o'clock", "clock at ten-thirty"),
        ("red heart", "light blue heart"),
        ("moon cake",),
        ("alarm clock",),
        ("old woman", "person", "boy"),
        ("woman judge",),
    ]
    found = [{names.kind_of(words) for words in kind} for kind in kinds]
    assert [len(kind) for kind in found] == [1] * len(kinds)
    assert len(set.union(*found)) == len(kinds)


@pytest.mark.parametrize(
    ("one", "other", "apart"),
    [
        ("fox", "owl", True),
        ("cat", "black cat", False),  # "the cat" would be both
        ("cook", "woman cook", False),
        ("bear", "polar bear", False),
        ("polar bear", "teddy bear", True),
    ],
)
def test_words_that_tell_things_apart(one, other, apart):
    assert names.are_apart(one, other) == names.are_apart(other, one) == apart


def test_sides():
    sided = ["leftwards hand", "right-facing fist", "clock at nine o'clock", "waxing crescent moon"]
    assert all(names.has_side(words) for words in sided)
    assert not any(names.has_side(words) for words in ("fox", "bright star", "full moon"))
