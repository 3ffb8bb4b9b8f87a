"""Run lengths: by hand, back and forth, and what is refused."""

import numpy as np
import pytest
from coco_runs import pack, run_lengths
from hypothesis import given
from hypothesis.extra import numpy as arrays

from data_pipelines.curate.run_lengths import RunLengthError, decode_mask, unpack_counts


@pytest.mark.parametrize("counts", [[1, 3, 2], "132"])
def test_a_mask_by_hand(counts):
    """Of 2 x 3 pixels: the second column and the pixel below the first."""
    found = decode_mask({"size": [2, 3], "counts": counts})
    assert found.dtype == bool
    np.testing.assert_array_equal(found, [[0, 1, 0], [1, 1, 0]])


def test_texts_by_hand():
    # 16 needs a second group, for bit 4 is the sign; from the fourth number on they are differences
    assert unpack_counts("`0") == [16]
    assert unpack_counts("5432") == [5, 4, 3, 6]
    assert unpack_counts("543O") == [5, 4, 3, 3]


def test_a_text_of_the_library():
    """Two ellipses, written by pycocotools 2.0.11."""
    y, x = np.mgrid[:40, :52]
    expected = (x - 20) ** 2 + (y - 18) ** 2 < 170
    expected |= (x - 40) ** 2 / 2 + (y - 30) ** 2 < 40
    text = "Z91R1:J2M4M2N2O0O2N2O0000000O20N100000001N2N101N2N3L3NXOJe0L_O6h02N2O000O2O0000000"
    text += "1N10001N2N2Nm2"
    np.testing.assert_array_equal(decode_mask({"size": [40, 52], "counts": text}), expected)
    assert pack(run_lengths(expected))["counts"] == text


@given(arrays.arrays(np.bool_, arrays.array_shapes(min_dims=2, max_dims=2, max_side=70)))
def test_back_and_forth(mask):
    runs = run_lengths(mask)
    np.testing.assert_array_equal(decode_mask(runs), mask)
    np.testing.assert_array_equal(decode_mask(pack(runs)), mask)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"counts": [1, 3]}, "do not fill 2 x 3"),
        ({"counts": [1, 3, 3]}, "do not fill"),
        ({"counts": [7, -1]}, "do not fill"),
        ({"counts": [[6]]}, "do not fill"),
        ({"counts": 6}, "do not fill"),
        ({"counts": "13"}, "do not fill"),
        ({"counts": "13P"}, "the last number does not end"),
        ({"counts": "1 2"}, "' ' does not occur"),
        ({"counts": None}, "no record of run lengths"),
        ({"counts": ["a"]}, "no record of run lengths"),
        ({"size": [6]}, "no record of run lengths"),
        ({"size": None}, "no record of run lengths"),
        ({"size": [-2, -3]}, "do not fill"),
    ],
)
def test_what_is_no_mask(changes, message):
    with pytest.raises(RunLengthError, match=message):
        decode_mask({"size": [2, 3], "counts": [1, 3, 2]} | changes)
    with pytest.raises(RunLengthError, match="no record"):
        decode_mask([[0, 0, 5, 0, 5, 5]])
