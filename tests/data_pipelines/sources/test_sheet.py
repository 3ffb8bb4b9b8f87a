"""Contact sheets: every pixel of a sample is on them, and what could not be used is counted."""

import numpy as np
import pytest
from pair_data import make_pair, write_pairs
from PIL import Image

from data_pipelines.sources import sheet
from data_pipelines.sources.base import UnsuitableError
from data_pipelines.sources.pairs import BUILDERS, PairSource
from unidiff_jax.tasks import get_task


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pairs = [make_pair(seed=seed) for seed in range(3)]
    return write_pairs(tmp_path_factory.mktemp("pairs"), [pairs])


def contains(page, picture):
    """Whether a picture lies somewhere on a page, pixel by pixel."""
    height, width = picture.shape[:2]
    corner = (page[: -height or None, : -width or None] == picture[0, 0]).all(axis=-1)
    return any(
        np.array_equal(page[y : y + height, x : x + width], picture)
        for y, x in np.argwhere(corner).tolist()
    )


@pytest.mark.parametrize("name", ["customize", "segment"])
def test_the_pixels_of_all_frames_are_on_the_sheet(folder, name):
    task = get_task(name)
    page = np.asarray(sheet.contact_sheet(folder, tasks=[name], rows=3, seed=5))
    for index in range(3):
        sample = PairSource(folder, task=task).sample(index, np.random.default_rng([5, index]))
        for _, picture in task.fill({f.field: sample[f.field] for f in task.frames}):
            factor = -(-sheet.CELL // max(picture.size))
            enlarged = np.kron(np.asarray(picture), np.ones((factor, factor, 1), np.uint8))
            assert contains(page, enlarged)


def test_large_frames_are_made_smaller():
    picture = Image.new("RGB", (1000, 500), (9, 99, 199))
    sample = {"later": picture, "earlier": picture, "change": "it stays", "tags": []}
    page = np.asarray(sheet.draw_sample(sample, task=get_task("next_frame")))
    assert page.shape[1] < 3 * sheet.CELL
    count = (page == (9, 99, 199)).all(axis=-1).sum()
    assert count == 2 * 256 * 128


def test_every_task_and_the_same_sheet_again(folder):
    first, again = (sheet.contact_sheet(folder, rows=1, seed=2) for _ in range(2))
    assert first.tobytes() == again.tobytes()
    assert first.height > len(BUILDERS) * 150
    assert first.tobytes() != sheet.contact_sheet(folder, rows=1, seed=3).tobytes()


class Few:
    """Every third sample can be used."""

    fields = ("image", "caption")

    def __init__(self):
        self.read = []

    def __len__(self):
        return 1000

    def sample(self, index, rng):
        self.read.append(index)
        if index % 3:
            raise UnsuitableError("no caption")
        return {"image": Image.new("RGB", (20, 20), (1, 2, 3)), "caption": ""}


def test_what_cannot_be_used_is_passed_over():
    source = Few()
    page = np.asarray(sheet.draw_sheet(source, task=get_task("text_to_image"), rows=4))
    assert (page == (1, 2, 3)).all(axis=-1).sum() == 4 * 260**2
    assert sum(index % 3 == 0 for index in source.read) == 4
    source.sample = lambda index, rng: Few.sample(source, 1, rng)
    source.read.clear()
    nothing = sheet.draw_sheet(source, task=get_task("text_to_image"), rows=2)
    assert len(source.read) == 2 * sheet.TRIES
    assert 0 < nothing.height < 100
