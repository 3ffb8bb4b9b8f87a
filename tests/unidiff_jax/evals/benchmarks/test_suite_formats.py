"""Items in exactly the files that the suites ship, written here by hand."""

import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_models import FakeExtractor, FakeGenerator, copy_source
from PIL import Image

from unidiff_jax.evals.benchmarks import (
    BENCHMARKS,
    depth,
    get_benchmark,
    portraits,
    referring_parquet,
)
from unidiff_jax.evals.benchmarks.base import BenchmarkError, Earlier, Predictions
from unidiff_jax.evals.benchmarks.editing import decode_runs
from unidiff_jax.evals.benchmarks.faces import TEMPLATE, YuNet, align_face
from unidiff_jax.evals.benchmarks.referring import true_mask
from unidiff_jax.evals.benchmarks.rle import polygons_to_mask, runs_to_mask
from unidiff_jax.evals.benchmarks.runner import run_benchmark
from unidiff_jax.evals.benchmarks.scoring import Tools
from unidiff_jax.evals.results_schema import SUBSTITUTE
from unidiff_jax.paths import as_path


def picture(path, size=(12, 8), color=(200, 30, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)
    return path


def write(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(values if isinstance(values, str) else json.dumps(values))


def read(name, folder, split=None):
    benchmark = get_benchmark(name)
    return list(benchmark.read(as_path(folder), split or benchmark.splits[0]))


# --------------------------------------------------------------------------------------- MagicBrush


@pytest.fixture
def magicbrush(tmp_path):
    """A session of two turns, as unpacked: below `test`."""
    root = tmp_path / "test"
    for name in ("139-input.png", "139-output1.png", "139-output2.png", "139-mask1.png"):
        picture(root / "images/139" / name)
    turns = [
        {
            "input": "139-input.png",
            "mask": "139-mask1.png",
            "output": "139-output1.png",
            "instruction": "add a hat",
        },
        {
            "input": "139-output1.png",
            "mask": "139-mask2.png",
            "output": "139-output2.png",
            "instruction": "make it blue",
        },
    ]
    write(root / "edit_sessions.json", {"139": turns})
    write(root / "edit_turns.json", turns)
    captions = {"139-input.png": "a dog", "139-output1.png": "a dog with a hat"}
    write(root / "local_descriptions.json", {"139": captions})
    return tmp_path


def test_magicbrush_names_turns_as_the_official_script(magicbrush):
    items = read("magicbrush", magicbrush)
    assert [item.id for item in items] == ["139/139_1", "139/139_inde_2", "139/139_iter_2"]
    first, inde, chained = items
    assert inde.given["source"].name == "139-output1.png"
    assert chained.given["source"] == Earlier("139/139_1")
    assert chained.truth["input"].name == "139-input.png"
    assert [item.truth["protocols"] for item in items] == [
        ("single_turn",),
        ("single_turn",),
        ("multi_turn",),
    ]
    assert first.truth["output_caption"] == "a dog with a hat"
    assert inde.truth["output_caption"] == "" and inde.size == (12, 8)
    assert {item.chain for item in items} == {"139"}


def test_magicbrush_says_what_is_wrong(magicbrush):
    root = magicbrush / "test"
    sessions = json.loads((root / "edit_sessions.json").read_text())
    sessions["139"][1]["output"] = "139-output3.png"
    write(root / "edit_sessions.json", sessions)
    with pytest.raises(BenchmarkError, match=r"turn 2: '139-output3.png' should end in -output2"):
        read("magicbrush", magicbrush)
    sessions["139"][1]["output"] = "../../139-output2.png"
    write(root / "edit_sessions.json", sessions)
    with pytest.raises(BenchmarkError, match="leaves the folder"):
        read("magicbrush", magicbrush)
    (root / "local_descriptions.json").unlink()
    with pytest.raises(BenchmarkError, match=r"none of local_descriptions.json"):
        read("magicbrush", magicbrush)
    with pytest.raises(BenchmarkError, match=r"there is no .*edit_sessions.json"):
        read("magicbrush", magicbrush / "none")


# ----------------------------------------------------------------------------------------- Emu Edit


def write_emu(folder, **columns):
    data = picture(folder / "one.png").read_bytes()
    row = {
        "instruction": "turn it blue",
        "image": {"bytes": data, "path": "1.png"},
        "task": "color",
        "split": "test",
        "idx": 7,
        "hash": "ab",
        "input_caption": "A  Train",
        "output_caption": "a train",
    }
    (folder / "data").mkdir(exist_ok=True)
    table = pa.Table.from_pylist([row | columns])
    pq.write_table(table, folder / "data/test-00000-of-00001.parquet")


def test_emu_edit(tmp_path):
    write_emu(tmp_path)
    (item,) = read("emu_edit", tmp_path)
    assert item.id == "test/color_7" and item.size == (12, 8)
    assert item.given["source"].open().getpixel((0, 0)) == (200, 30, 30)
    assert item.truth["input_caption"] == "A  Train"
    with pytest.raises(BenchmarkError, match=r"validation-\*"):
        read("emu_edit", tmp_path, "validation")


def test_the_set_of_generations_is_not_emu_edits_test_set(tmp_path):
    table = pa.Table.from_pylist([{"idx": 0, "edited_image": {"bytes": b"", "path": ""}}])
    pq.write_table(table, tmp_path / "test-00000-of-00001.parquet")
    with pytest.raises(BenchmarkError, match="whose splits have each other's names"):
        read("emu_edit", tmp_path)


# ---------------------------------------------------------------------------------------- PIE-Bench


def test_pie_bench(tmp_path):
    picture(tmp_path / "annotation_images/1_change_object_80/1/0001.jpg", (512, 512))
    record = {
        "image_path": "1_change_object_80/1/0001.jpg",
        "original_prompt": "a [cat] on a chair",
        "editing_prompt": "a [dog] on a chair",
        "editing_instruction": "change the cat to a dog",
        "editing_type_id": "1",
        "mask": [0, 3, 512 * 100 + 5, 10],
    }
    write(tmp_path / "mapping_file.json", {"000": record})
    (item,) = read("pie_bench", tmp_path)
    assert item.id == "1_change_object_80/1/0001"
    assert item.truth["output_caption"] == "a dog on a chair"
    mask = decode_runs(item.truth["runs"])
    frame = 4 * 512 - 4
    assert mask.sum() == frame + 10 and mask[100, 5:15].all() and not mask[100, 15]
    with pytest.raises(BenchmarkError, match="pairs of start and length"):
        decode_runs([1, 2, 3])


# ------------------------------------------------------------------------------------------- masks


def test_polygons_as_cocos_tools_draw_them():
    # pycocotools 2.0.11
    polygon = [10.3, 4.2, 30.7, 6.9, 41.5, 25.5, 22.25, 38.0, 5.5, 20.1]
    columns = [0, 0, 0, 0, 0, 0, 4, 8, 13, 17, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 30, 31, 32,
               31, 30, 30, 29, 28, 27, 26, 26, 24, 21, 19, 17, 14, 12, 10, 8, 5, 2, 1, 0, 0, 0, 0,
               0, 0, 0, 0]  # fmt: skip
    mask = polygons_to_mask([polygon], height=48, width=50)
    assert mask.sum(axis=0).tolist() == columns
    square = polygons_to_mask([[2, 1, 5, 1, 5, 4, 2, 4]], height=6, width=8)
    assert square.sum() == 9 and square[1:4, 2:5].all()
    with pytest.raises(ValueError, match="three corners are six"):
        polygons_to_mask([[1, 2, 3, 4]], height=6, width=8)


def test_runs_go_down_the_columns():
    mask = runs_to_mask([1, 3, 2], height=3, width=2)
    assert mask.tolist() == [[False, True], [True, False], [True, False]]
    with pytest.raises(ValueError, match="the runs sum to 5, the picture has 6"):
        runs_to_mask([2, 3], height=3, width=2)
    with pytest.raises(ValueError, match="compressed"):
        runs_to_mask("a94Y", height=3, width=2)


@pytest.fixture
def refcoco(tmp_path):
    """Two expressions of one object, and one of another split."""
    picture(tmp_path / "images/mscoco/images/train2014/COCO_train2014_000000000009.jpg", (8, 6))
    annotations = [
        {"id": 5, "image_id": 9, "segmentation": [[2, 1, 5, 1, 5, 4, 2, 4]]},
        {"id": 6, "image_id": 9, "segmentation": {"size": [6, 8], "counts": [0, 48]}},
    ]
    pictures = [
        {
            "id": 9,
            "file_name": "COCO_train2014_000000000009.jpg",
            "height": 6,
            "width": 8,
        }
    ]
    refs = [
        {
            "ref_id": n,
            "ann_id": ann,
            "image_id": 9,
            "category_id": 1,
            "split": split,
            "file_name": "COCO_train2014_000000000009_5.jpg",
            "sent_ids": [number for number, _ in sentences],
            "sentences": [
                {"raw": s, "sent": s, "sent_id": number, "tokens": s.split()}
                for number, s in sentences
            ],
        }
        for n, ann, split, sentences in (
            (0, 5, "testA", [(11, "left man"), (12, "the man")]),
            (1, 6, "val", [(13, "everything")]),
        )
    ]
    write(tmp_path / "refcoco/instances.json", {"images": pictures, "annotations": annotations})
    write(tmp_path / "refcoco/refs(unc).json", refs)
    return tmp_path


def test_refcoco(refcoco):
    first, second = read("refcoco", refcoco, "testA")
    assert (first.id, second.id) == ("testA/11", "testA/12")
    assert second.text == {"expression": "the man"} and first.size == (8, 6)
    assert true_mask(first).sum() == 9
    (whole,) = read("refcoco", refcoco, "val")
    assert true_mask(whole).all()
    assert first.given["image"].open().size == (8, 6)
    with pytest.raises(BenchmarkError, match="has no split 'testB'"):
        read("refcoco", refcoco, "testB")


def test_a_pickle_is_not_loaded(refcoco, tmp_path):
    class Harm:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    (refcoco / "refcoco/refs(unc).json").unlink()
    (refcoco / "refcoco/refs(unc).p").write_bytes(pickle.dumps(Harm()))
    with pytest.raises(BenchmarkError, match="is not loaded; if you trust it: python -c"):
        read("refcoco", refcoco)
    assert not (tmp_path / "harm").exists()


def test_the_conversion_that_the_error_tells(refcoco, tmp_path, monkeypatch):
    from unidiff_jax.evals.benchmarks.referring import CONVERT

    code = CONVERT.removeprefix('python -c "').removesuffix('"')
    content = json.loads((refcoco / "refcoco/refs(unc).json").read_text())
    (tmp_path / "refs.p").write_bytes(pickle.dumps(content))
    monkeypatch.setattr("sys.argv", ["-c", str(tmp_path / "refs.p"), str(tmp_path / "refs.json")])
    exec(code)
    assert json.loads((tmp_path / "refs.json").read_text()) == content


def write_pictured(folder, split, rows):
    """As `lmms-lab/RefCOCO` has them, with the card's types."""
    blank = picture(folder / "blank.jpg", (8, 6)).read_bytes()
    base = {
        "question_id": "5",
        "image": {"bytes": blank, "path": "COCO_train2014_000000000009_5.jpg"},
        "question": "Where?",
        "answer": ["left man"],
        "segmentation": [2.0, 1.0, 5.0, 1.0, 5.0, 4.0, 2.0, 4.0],
        "bbox": [2.0, 1.0, 3.0, 3.0],
        "iscrowd": 0,
        "file_name": "COCO_train2014_000000000009_5.jpg",
    }
    schema = pa.schema(
        {
            "question_id": pa.string(),
            "image": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
            "question": pa.string(),
            "answer": pa.list_(pa.string()),
            "segmentation": pa.list_(pa.float32()),
            "bbox": pa.list_(pa.float32()),
            "iscrowd": pa.int8(),
            "file_name": pa.string(),
        }
    )
    path = folder / f"data/{split}-00000-of-00001.parquet"
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist([base | row for row in rows], schema), path)


def write_annotated(folder, stem, **columns):
    """As `jxu124/refcoco` has them, with the card's types."""
    sentences = [
        {"raw": "Left man", "sent": "left man", "sent_id": 11, "tokens": ["left", "man"]},
        {"raw": "the man", "sent": "the man", "sent_id": 12, "tokens": ["the", "man"]},
    ]
    outline = [[2, 1, 5, 1, 5, 4, 2, 4], [6, 1, 8, 1, 8, 3, 6, 3]]
    info = {"file_name": "COCO_train2014_000000000009.jpg", "height": 6, "width": 8, "id": 9}
    row = {
        "sent_ids": [11, 12],
        "file_name": "COCO_train2014_000000000009_5.jpg",
        "ann_id": 5,
        "ref_id": 0,
        "image_id": 9,
        "split": "testA",
        "sentences": sentences,
        "category_id": 1,
        "raw_anns": json.dumps({"segmentation": outline, "iscrowd": 0, "image_id": 9, "id": 5}),
        "raw_image_info": json.dumps(info),
        "raw_sentences": json.dumps(sentences),
        "image_path": "coco/train2014/COCO_train2014_000000000009.jpg",
        "bbox": [2.0, 1.0, 8.0, 4.0],
        "captions": ["left man", "the man"],
        "global_image_id": "coco.9",
        "anns_id": "refcoco.5",
    }
    path = folder / f"data/{stem}-00000-of-00001-82af0c1b600890ac.parquet"
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist([row | columns]), path)


def test_refcoco_with_pictures_in_parquet(tmp_path):
    rows = [
        {"answer": ["left man", "the man"]},
        {"iscrowd": 1, "segmentation": [3.0, 45.0], "answer": ["all of them"]},
        {"segmentation": [2.0, 1.0, 3.0, 1.0, 3.0, 2.0], "bbox": [2.0, 1.0, 6.0, 5.0]},
    ]
    write_pictured(tmp_path, "testA", rows)
    write_pictured(tmp_path, "val", rows)
    items = read("refcoco", tmp_path, "testA")
    assert [item.id for item in items] == ["testA/00000_0", "testA/00000_1", "testA/00002_0"]
    assert items[1].text == {"expression": "the man"} and items[1].size == (8, 6)
    assert items[0].given["image"].open().size == (8, 6)
    assert true_mask(items[0]).sum() == 9
    one, off, crowds = items[0].truth["deviations"]
    assert "one polygon an object" in one and off.startswith("1 polygons do not reach")
    assert crowds == "1 sentences of crowds are left out."
    results = run_benchmark(
        get_benchmark("refcoco"),
        data=tmp_path,
        split="testA",
        out=tmp_path / "out",
        generator=FakeGenerator(lambda request: np.ones((6, 8, 3), np.float32)),
    )
    for score in results["scores"]:
        assert one in score["deviations"] and score["badge"] == SUBSTITUTE


def test_refcocos_val_in_parquet_has_another_splits_objects(tmp_path, monkeypatch):
    monkeypatch.setitem(referring_parquet.MIXED, ("refcoco", "val"), 1)
    write_pictured(tmp_path, "val", [{}, {}])
    note = read("refcoco", tmp_path, "val")[0].truth["deviations"][-1]
    assert note.startswith("The re-release has 2 objects in val and the split has 1")
    assert len(read("refcoco+", tmp_path, "val")[0].truth["deviations"]) == 1


def test_refcoco_of_annotations_in_parquet(tmp_path):
    for stem in ("test", "validation"):
        write_annotated(tmp_path, stem)
    with pytest.raises(BenchmarkError, match="does not hold them; put COCO's train2014"):
        read("refcoco", tmp_path, "testA")
    picture(tmp_path / "coco/train2014/COCO_train2014_000000000009.jpg", (8, 6))
    first, second = read("refcoco", tmp_path, "testA")
    assert (first.id, second.id) == ("testA/11", "testA/12")
    assert second.text == {"expression": "the man"} and first.size == (8, 6)
    assert true_mask(first).sum() == 9 + 4  # both parts
    assert "deviations" not in first.truth
    assert first.given["image"].open().size == (8, 6)
    assert [item.id for item in read("refcoco", tmp_path, "val")] == ["val/11", "val/12"]
    assert [item.id for item in read("refcocog", tmp_path, "test")] == ["test/11", "test/12"]


def test_refcoco_in_parquet_says_what_it_looked_for(tmp_path):
    wanted = r"neither refcoco/refs\(unc\).json nor parquet files .* data/val-00000"
    with pytest.raises(BenchmarkError, match=wanted):
        read("refcoco", tmp_path)
    with pytest.raises(BenchmarkError, match=r"no such file: .*refcocog/instances.json"):
        read("refcocog_google", tmp_path)
    (tmp_path / "data").mkdir()
    path = tmp_path / "data/val-00000-of-00001.parquet"
    pq.write_table(pa.table({"image": [1], "bbox": [2]}), path)
    with pytest.raises(BenchmarkError, match=r"columns sentences, .* it has image, bbox"):
        read("refcoco", tmp_path)
    path.write_bytes(b"PAR1 torn")
    with pytest.raises(BenchmarkError, match="is no parquet file or is damaged"):
        read("refcoco", tmp_path)
    path.unlink()
    picture(tmp_path / "train2014/COCO_train2014_000000000009.jpg", (8, 6))
    write_annotated(tmp_path, "validation", raw_anns="{")
    with pytest.raises(BenchmarkError, match="raw_anns is not JSON"):
        read("refcoco", tmp_path)
    write_annotated(tmp_path, "validation", image_path="coco/train2014/..")
    with pytest.raises(BenchmarkError, match=r"not the name of a file|leaves the folder"):
        read("refcoco", tmp_path)


# ------------------------------------------------------------------------------------------- depth


def test_eth3d_is_raw_and_infinite_where_there_is_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(depth, "ETH3D_SHAPE", (4, 6))
    picture(tmp_path / "rgb/courtyard/DSC_0286.JPG.png", (6, 4))
    values = np.arange(1, 25, dtype=np.float32).reshape(4, 6)
    values[0, 0] = np.inf
    (tmp_path / "depth").mkdir()
    values.tofile(tmp_path / "depth/DSC_0286.bin")
    write(tmp_path / "eth3d_filename_list.txt", "rgb/courtyard/DSC_0286.JPG.png depth/DSC_0286.bin")
    (item,) = read("eth3d", tmp_path)
    assert item.id == "rgb/courtyard/pred_DSC_0286.JPG"
    found, mask = depth.true_depth(item, "eth3d")
    assert found[0, 0] == 0 and found[3, 5] == 24 and mask is None
    (tmp_path / "depth/DSC_0286.bin").write_bytes(b"1234")
    with pytest.raises(BenchmarkError, match=r"has 1 numbers, not those of \(4, 6\)"):
        depth.true_depth(item, "eth3d")


def test_depth_in_a_picture(tmp_path):
    picture(tmp_path / "test/kitchen/rgb_0001.png", (640, 480))
    millimetres = np.full((480, 640), 2500, np.uint16)
    Image.fromarray(millimetres).save(tmp_path / "test/kitchen/depth_0001.png")
    line = "test/kitchen/rgb_0001.png test/kitchen/depth_0001.png test/kitchen/filled_0001.png"
    write(tmp_path / "filename_list_test.txt", line)
    (item,) = read("nyuv2", tmp_path)
    assert item.id == "test/kitchen/pred_0001"
    assert (depth.true_depth(item, "nyuv2")[0] == 2.5).all()
    write(tmp_path / "filename_list_test.txt", "test/kitchen/rgb_0001.png")
    with pytest.raises(BenchmarkError, match=r":1 has 1 names, not 3"):
        read("nyuv2", tmp_path)


def test_maps_of_two_sizes_are_exchanged(tmp_path):
    """DIODE's own masks, pictures of two sizes: the shuffled row needs both."""
    lines = []
    for number, (width, height) in enumerate(((20, 12), (16, 10))):
        stem = f"indoors/{number}"
        picture(tmp_path / f"{stem}.png", (width, height))
        metres = np.linspace(1, 5, width * height).reshape(height, width, 1) + number
        np.save(tmp_path / f"{stem}_depth.npy", metres)
        np.save(tmp_path / f"{stem}_depth_mask.npy", np.ones((height, width), np.float32))
        lines.append(f"{stem}.png {stem}_depth.npy {stem}_depth_mask.npy")
    write(tmp_path / "diode_val_all_filename_list.txt", "\n".join(lines))
    items = read("diode", tmp_path)
    maps = {item.id: depth.true_depth(item, "diode")[0] for item in items}
    made = Predictions("made", lambda item: maps[item.id])
    exchanged = Predictions("made", made.read, {}, dict(zip(maps, items[::-1], strict=True)))
    score = get_benchmark("diode").score
    (own, other) = (score(items, found, None)[0].values for found in (made, exchanged))
    assert own.tolist() == [1, 1] and (other <= own).all()
    wrong = Predictions("made", lambda item: maps[items[0].id])
    with pytest.raises(BenchmarkError, match="indoors"):  # no map of another size is stretched
        score(items, wrong, None)


def test_kittis_crop_must_fit(tmp_path):
    picture(tmp_path / "a.png", (600, 300))
    write(tmp_path / "eigen_test_files_with_gt.txt", "a.png a_depth.png 721.5")
    with pytest.raises(BenchmarkError, match="300 x 600 pixels hold no crop"):
        read("kitti", tmp_path)


# ---------------------------------------------------------------------------------------- subjects


def test_dreambench_prompts_have_the_class_alone(tmp_path):
    for number in range(2):
        picture(tmp_path / f"dataset/dog6/{number:02d}.jpg")
    picture(tmp_path / "dataset/rc_car/00.jpg")
    lines = """Classes

subject_name,class
dog6,dog
rc_car,toy

Prompts

Object Prompts

prompt_list = [
'a {0} {1} on the moon'.format(unique_token, class_token),
'a tiny {0} {1}'.format(unique_token, class_token)
]

Live Subject Prompts

prompt_list = [
'a {0} {1} wearing a crown'.format(unique_token, class_token)
]
"""
    write(tmp_path / "dataset/prompts_and_classes.txt", lines)
    items = read("dreambench", tmp_path)
    assert len(items) == 4 * (1 + 2)
    dog = items[0]
    assert dog.id == "dog6/00_0" and dog.truth["prompt"] == "a dog wearing a crown"
    assert dog.text["slots"] == "<p> wearing a crown"
    assert dog.text["references"] == "the dog of IMG1"
    assert dog.text["captions"] == "[[img0]] a dog wearing a crown [[img1]]"
    assert [p.name for p in dog.given["assets"]] == ["dog6/00.jpg"]
    assert len(dog.truth["references"]) == 2
    assert items[-1].truth["prompt"] == "a tiny toy" and items[-1].seed == 3


# ------------------------------------------------------------------------------------------- views


def test_white_only_where_nothing_is(tmp_path):
    model = tmp_path / "lion/render_mvs_25/model"
    model.mkdir(parents=True)
    rgba = np.zeros((256, 256, 4), np.uint8)
    rgba[:10, :, 3], rgba[:10, :, 0] = 128, 90  # half transparent: not blended
    rgba[10:, :, 1] = 77
    for number in range(25):
        Image.fromarray(rgba).save(model / f"{number:03d}.png")
        matrix = np.concatenate([np.eye(3), [[0.0], [0.0], [-2.0 - number]]], axis=1)
        np.save(model / f"{number:03d}.npy", matrix)
    items = read("gso_views", tmp_path)
    assert items[0].id == "inputs1/lion/010" and len(items) == 5 * 15
    shown = items[0].truth["target"].open()
    assert shown.getpixel((0, 0)) == (90, 0, 0) and shown.getpixel((0, 20)) == (255, 255, 255)
    known, unknown = (
        next(i for i in items if i.truth["protocol"] == p) for p in ("inputs3", "inputs3_unknown")
    )
    assert known.given["cameras"]["made_cameras"] == (False, False, False, False)
    assert unknown.given["cameras"]["made_cameras"] == (False, True, True, False)
    centers = known.given["cameras"]["poses"][:, :3, 3]  # cameras at z = 2, 3, 4, and 12
    assert centers.tolist() == [[0, 0, 2], [0, 0, 3], [0, 0, 4], [0, 0, 12]]
    np.save(model / "003.npy", np.eye(3))
    with pytest.raises(BenchmarkError, match=r"003.npy has shape \(3, 3\), not \(3, 4\)"):
        read("gso_views", tmp_path)


# -------------------------------------------------------------------------------------- COCO, faces


def test_coco_takes_each_pictures_first_caption(tmp_path):
    picture(tmp_path / "val2014/COCO_val2014_000000000042.jpg")
    annotations = [
        {"id": 9, "image_id": 42, "caption": "later"},
        {"id": 3, "image_id": 42, "caption": " first \n"},
    ]
    write(tmp_path / "annotations/captions_val2014.json", {"annotations": annotations})
    (item,) = read("coco_fid", tmp_path)
    assert (item.id, item.text["caption"]) == ("42", "first")
    write(tmp_path / "captions.json", [{"id": "x1", "caption": "mine"}])
    (item,) = read("coco_fid", tmp_path)
    assert (item.id, item.text["caption"]) == ("x1", "mine")


class ColorFaces:
    """A face is where a picture is not black; its identity is its colour."""

    def __call__(self, pixels):
        if isinstance(pixels, np.ndarray) and pixels.ndim == 4:
            mean = pixels.reshape(len(pixels), -1, 3).mean(axis=1)
            return mean / np.linalg.norm(mean, axis=1, keepdims=True)
        return None if pixels.max() == 0 else TEMPLATE + 20.0


def test_portraits(tmp_path):
    colors = {"ann": (200, 0, 0), "bob": (0, 200, 0)}
    for name, color in colors.items():
        picture(tmp_path / f"portraits/{name}.jpg", (200, 200), color)
    write(tmp_path / "prompts.txt", "a person in a garden\n\na person by the sea\n")
    items = read("unsplash50", tmp_path)
    assert [item.id for item in items] == ["ann/00", "ann/01", "bob/00", "bob/01"]
    assert items[0].text["slots"] == "<p> in a garden"
    answers = {
        "ann/00": colors["ann"],
        "ann/01": (0, 0, 0),  # no face: counts as 0
        "bob/00": colors["bob"],
        "bob/01": colors["ann"],
    }
    made = Predictions("made", lambda i: Image.new("RGB", (200, 200), answers[i.id]))
    encoder = {"name": "face", "sha256": "0" * 64, "preprocess": "five points"}
    tools = Tools(loaded={"clip-b32": FakeExtractor("clip-b32")})
    found = portraits.score_portraits(
        items, made, tools, faces=(ColorFaces(), ColorFaces(), encoder)
    )
    scores = {score.metric: score.values for score in found}
    assert scores["identity"] == pytest.approx([1, 0, 1, 0], abs=0.02)
    assert scores["no_face"].tolist() == [0, 1, 0, 0]
    assert set(scores) == {"identity", "no_face", "clip_t"}
    with pytest.raises(ValueError, match="no such file"):
        YuNet(tmp_path / "none.onnx")


def test_a_face_is_turned_upright():
    pixels = np.zeros((300, 300, 3), np.uint8)
    turn = np.array([[0.0, -1.5], [1.5, 0.0]])  # a quarter turn, and larger
    points = TEMPLATE @ turn.T + [250, 40]
    for point, color in zip(points, ((255, 0, 0), (0, 255, 0)), strict=False):
        x, y = np.round(point).astype(int)
        pixels[y - 3 : y + 4, x - 3 : x + 4] = color
    face = align_face(pixels, points)
    assert face.shape == (112, 112, 3)
    left, right = (face[round(y), round(x)] for x, y in TEMPLATE[:2])
    assert left.argmax() == 0 and right.argmax() == 1


# --------------------------------------------------------------------------------------- all suites


def test_every_suite_says_what_a_user_needs(tmp_path):
    for name, benchmark in BENCHMARKS.items():
        assert benchmark.name == name and benchmark.description and benchmark.data.layout
        assert set(benchmark.counts) <= set(benchmark.splits)
        with pytest.raises(BenchmarkError):  # an empty folder is no suite
            list(benchmark.read(as_path(tmp_path), benchmark.splits[0]))


def test_a_damaged_suite_is_no_failure_of_the_model(magicbrush, tmp_path):
    (magicbrush / "test/images/139/139-output1.png").write_bytes(b"\x89PNG torn")
    generator = FakeGenerator(copy_source)
    with pytest.raises(BenchmarkError, match=r"139-output1.png is no PNG"):
        run_benchmark(
            get_benchmark("magicbrush"), data=magicbrush, out=tmp_path / "out", generator=generator
        )
    assert not generator.asked
