"""What comes from outside is read right or refused with an error that names the file."""

import json
import logging
import os
import pathlib
import sys
import tarfile

import hostile
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from etils import epath
from hostile import SAFETENSORS, safetensors_file, tar_header, tensor
from PIL import Image, ImageFile
from raw_data import encode, picture, png, value_of, write_scene, write_tar

from data_pipelines.blobs import BlobError, unpack_blob
from data_pipelines.curate.checkpoints import CheckpointError, check_folder
from data_pipelines.curate.clips import ClipError, ReadSettings, VideoClips
from data_pipelines.curate.mask_folders import read_ids
from data_pipelines.curate.run_lengths import RunLengthError, decode_mask
from data_pipelines.sources.base import SampleError, SourceError
from data_pipelines.sources.folders import open_folder
from data_pipelines.sources.parquet import ParquetTable
from data_pipelines.sources.prepared import PreparedTable
from data_pipelines.sources.scenes import SceneSource
from data_pipelines.sources.subjects import SubjectSource
from data_pipelines.sources.tables import TableSource
from data_pipelines.sources.tars import TarTable
from data_pipelines.subjects.package import PackageError, read_look
from unidiff_jax.config import ConfigError
from unidiff_jax.export.files import FolderError, open_tensors, read_config
from unidiff_jax.export.mapping import MappingError, from_official, t5_table
from unidiff_jax.headers import ITEM_BYTES, data_start, parse_header
from unidiff_jax.models.t5 import T5Config
from unidiff_jax.outside import (
    InputError,
    clean_text,
    decode_json,
    decode_values,
    fits,
    inside,
    read_file,
    read_object,
)
from unidiff_jax.prompts import parse_prompt, resolve_prompt
from unidiff_jax.sample.encoders import LoadedText
from unidiff_jax.sample.images import load_image, open_picture
from unidiff_jax.text import load_tokenizer
from unidiff_jax.train.workdir import load_workdir_config

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden" / "onediffusion"
TOKENIZER = GOLDEN / "tinypipe" / "tokenizer"


def rng():
    return np.random.default_rng(0)


# ---------------------------------------------------------------------------------------- pictures


def by_sampling(data, tmp_path):
    (tmp_path / "x.png").write_bytes(data)
    return open_picture(tmp_path / "x.png")


def by_prompt(data, tmp_path):
    (tmp_path / "x.png").write_bytes(data)
    return resolve_prompt(parse_prompt("<img>x.png</img>"), folder=tmp_path)[0]


def by_folder(data, tmp_path):
    (tmp_path / "x.png").write_bytes(data)
    return TableSource(open_folder(str(tmp_path))).sample(0, rng())["image"]


def by_tar(data, tmp_path):
    path = write_tar(tmp_path / "x.tar", [("x.png", data)])
    return TableSource(TarTable(str(path))).sample(0, rng())["png"]


def by_parquet(data, tmp_path):
    pq.write_table(pa.table({"image": [data]}), tmp_path / "x.parquet")
    return TableSource(ParquetTable(str(tmp_path / "x.parquet"))).sample(0, rng())["image"]


def by_subject(data, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "x.png").write_bytes(data)
    return SubjectSource(str(tmp_path), num_views=1).sample(0, rng())["views"][0]


READERS = (by_sampling, by_prompt, by_folder, by_tar, by_parquet, by_subject)


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = Image.new("RGB", (24, 16), "black")
    whole.paste("white", (0, 0, 24, 8))  # on the top as it is stored, on the right as it is meant
    return encode(whole, exif=exif)


def animated():
    frames = [picture(value) for value in (50, 200)]
    options = {"save_all": True, "append_images": frames[1:], "lossless": True}
    return encode(frames[0], format="WEBP", **options)


def sixteen_bits():
    return encode(Image.fromarray(np.full((16, 24), 100 * 257, np.uint16)))


def palette():
    image = Image.new("P", (24, 16), 1)
    image.putpalette([0, 0, 0, 100, 100, 100])
    return encode(image)


@pytest.mark.parametrize("read", READERS)
def test_every_reader_gives_the_same_rgb(read, tmp_path):
    half = Image.new("LA", (24, 16), (0, 128))
    pixels = {
        "turned": (turned(), None),
        "animated": (animated(), 50),
        "16 bits": (sixteen_bits(), 100),
        "palette": (palette(), 100),
        "grey and alpha, on white": (encode(half), 127),
        "clear, on white": (encode(Image.new("RGBA", (24, 16), (9, 9, 9, 0))), 255),
        "CMYK": (encode(picture().convert("CMYK"), format="JPEG", quality=95), 100),
        "bilevel": (encode(Image.new("1", (24, 16), 1)), 255),
    }
    for number, (name, (data, value)) in enumerate(pixels.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        found = read(data, folder)
        assert found.mode == "RGB", name
        if value is None:
            assert found.size == (16, 24)
            assert value_of(found) == 0 and np.asarray(found)[0, -1, 0] == 255
        else:
            assert np.abs(np.asarray(found).astype(int) - value).max() <= 1, name


@pytest.fixture(scope="module")
def bombs():
    cut = encode(Image.fromarray(rng().integers(0, 255, (64, 64, 3), np.uint8)))
    return {
        "pixels": hostile.png_bomb(),
        "text": hostile.png_text_bomb(),
        "canvas": hostile.webp_bomb(),
        "cut short": cut[: len(cut) // 2],
        "nothing": b"",
        "another format": encode(picture(), format="TIFF"),
    }


@pytest.mark.parametrize("read", READERS)
def test_bombs_are_refused_undecoded(bombs, read, tmp_path, monkeypatch):
    assert len(bombs["pixels"]) < 300_000 and len(bombs["text"]) < 300_000
    decoded = []
    load = ImageFile.ImageFile.load
    monkeypatch.setattr(
        ImageFile.ImageFile, "load", lambda self: (decoded.append(self.size), load(self))[1]
    )
    for number, (name, data) in enumerate(bombs.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        with pytest.raises((InputError, SampleError)) as caught:
            read(data, folder)
        message = str(caught.value)
        assert "\n" not in message and "x" in message, name
        if name == "pixels":
            assert "30000x30000" in message or "too large" in message
    assert max(decoded, default=(0, 0)) <= (64, 64)


def test_values_as_they_are_stored():
    ids = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3), mode="P")
    ids.putpalette([255 - i for i in range(18)])
    np.testing.assert_array_equal(decode_values(encode(ids)), np.arange(6).reshape(2, 3))
    depth = np.array([[0, 257, 65535]], np.uint16)
    found = decode_values(encode(Image.fromarray(depth)))
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, depth)
    rgba = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    np.testing.assert_array_equal(decode_values(encode(Image.fromarray(rgba))), rgba)
    assert decode_values(encode(Image.new("1", (2, 2), 1))).tolist() == [[1, 1], [1, 1]]
    depth = load_image(Image.fromarray(depth.repeat(4, 0)), codec="depth", size=3)
    assert depth[0, 0] < 0.01 and depth[0, -1] == 1.0


def test_maps_that_are_bombs(bombs, tmp_path):
    for name in ("pixels", "cut short", "nothing"):
        path = epath.Path(tmp_path / "ids.png")
        path.write_bytes(bombs[name])
        with pytest.raises(ClipError, match=r"no picture of ids: .*ids.png"):
            read_ids(path)
        with pytest.raises(PackageError, match=r"ids.png cannot be read"):
            read_look(pathlib.Path(path), size=8)


def test_run_lengths_that_are_bombs():
    with pytest.raises(RunLengthError, match="at most"):
        decode_mask({"size": [10**9, 10**9], "counts": [10**18]})
    with pytest.raises(RunLengthError, match="do not fill"):  # the sum begins anew: 2 x 3 in all
        decode_mask({"size": [2, 3], "counts": [2**62, 2**62, 2**62, 2**62 - 2**62 + 6]})
    with pytest.raises(RunLengthError, match="do not fill"):
        decode_mask({"size": [2, 3], "counts": [2**62] * 4 + [6]})
    with pytest.raises(RunLengthError, match="more than 60 bits"):
        decode_mask({"size": [2, 3], "counts": "P" * 1_000_000})


# ------------------------------------------------------------------------------------ paths, links


def test_names_and_links_stay_in_their_folder(tmp_path):
    folder, secret = tmp_path / "set", tmp_path / "secret"
    (folder / "a").mkdir(parents=True)
    secret.mkdir()
    (secret / "x.png").write_bytes(png())
    (folder / "a" / "in.png").write_bytes(png())
    (folder / "in.png").symlink_to("a/in.png")
    (folder / "out.png").symlink_to(secret / "x.png")
    (folder / "b").symlink_to(secret)
    (folder / "loop.png").symlink_to("loop.png")
    assert inside(folder, "in.png").exists()
    whole = tmp_path / "linked"
    whole.symlink_to(folder)  # the folder itself may be a link
    assert inside(whole, "in.png").exists()
    for name in ("out.png", "b/x.png"):
        with pytest.raises(InputError, match=rf"the link '{name}' leads out of the folder"):
            inside(folder, name)
    for name in ("../secret/x.png", str(secret / "x.png"), "a/../../secret/x.png"):
        with pytest.raises(InputError, match="leaves the folder"):
            inside(folder, name)
    with pytest.raises(OSError):
        read_file(inside(folder, "loop.png"))


def test_links_into_a_cache_are_followed(tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0a1b" / "images"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    (blobs / "f00d").write_bytes(png(70))
    (snapshot / "1.png").symlink_to("../../../blobs/f00d")
    assert value_of(TableSource(open_folder(str(snapshot))).sample(0, rng())["image"]) == 70


@pytest.mark.parametrize("layout", ["metadata", "subfolders", "side_files"])
def test_folders_with_links_that_lead_out(tmp_path, layout):
    secret, folder = tmp_path / "secret.png", tmp_path / "set"
    secret.write_bytes(png())
    inner = folder / "image" if layout == "subfolders" else folder
    inner.mkdir(parents=True)
    (inner / "1.png").symlink_to(secret)
    if layout == "metadata":
        (folder / "metadata.jsonl").write_text('{"file_name": "1.png"}\n')
    source = TableSource(open_folder(str(folder), layout=layout))
    with pytest.raises(SampleError, match=r"the link '1.png' leads out of the folder"):
        source.sample(0, rng())


def test_manifests_that_leave_their_folder(tmp_path):
    (tmp_path / "secret.png").write_bytes(png())
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "metadata.jsonl").write_text('{"file_name": "../secret.png"}\n')
    with pytest.raises(SampleError, match=r"metadata.jsonl row 0: .*leaves the folder"):
        TableSource(open_folder(str(folder))).sample(0, rng())
    scene = write_scene(tmp_path / "scene", count=2)
    record = json.loads((scene / "transforms.json").read_text())
    for frame in record["frames"]:
        frame["file_path"] = "images/../../secret.png"
    (scene / "transforms.json").write_text(json.dumps(record))
    with pytest.raises(SampleError, match="leaves the folder"):
        SceneSource(str(scene), num_views=2).sample(0, rng())


def test_pipes_and_devices_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "1.png")  # reading one would wait for ever
    with pytest.raises(SampleError, match=r"1.png is no file that can be read whole"):
        TableSource(open_folder(str(tmp_path))).sample(0, rng())
    with pytest.raises(InputError, match="no file that can be read whole"):
        read_file("/dev/zero")
    with pytest.raises(InputError, match=r"1.png is no file that can be read whole"):
        open_picture(tmp_path / "1.png")


def test_tars_that_lead_elsewhere(tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    members = [
        tar_header("1.png", size=len(png())) + png() + bytes(-len(png()) % 512),
        tar_header("1.txt", kind=tarfile.SYMTYPE, link=str(secret)),
        tar_header("2.txt", kind=tarfile.LNKTYPE, link="../secret.txt"),
        tar_header("3.txt", kind=tarfile.CHRTYPE),
        tar_header("../../4.txt", size=4) + b"four" + bytes(508),
        tar_header("/etc/5.txt", size=4) + b"five" + bytes(508),
    ]
    (tmp_path / "a.tar").write_bytes(b"".join(members) + bytes(1024))
    before = sorted(tmp_path.rglob("*"))
    table = TarTable(str(tmp_path / "a.tar"))
    texts = [table.row(i, ["txt"])["txt"] for i in range(len(table))]
    assert texts == [None, "four", "five"]  # names are keys and no paths; links are passed over
    assert sorted(tmp_path.rglob("*")) == before


def test_tars_with_headers_without_end(tmp_path):
    path = tmp_path / "a.tar"
    for kind in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE):
        name = tar_header("././@LongLink", kind=kind, size=5) + b"aaaa\0" + bytes(507)
        path.write_bytes(name * 3000 + tar_header("1.txt") + bytes(1024))
        with pytest.raises(SourceError, match=r"damaged: more than 8 headers of one member"):
            TarTable(str(path))
        path.write_bytes(tar_header("x", kind=kind, size=2**33) + bytes(2048))
        with pytest.raises(SourceError, match=r"damaged: a header of 8589934592 bytes"):
            TarTable(str(path))
    long = "a" * 300  # one such header is the way of long names
    write_tar(path, [(f"{long}.txt", b"here")])
    assert TarTable(str(path)).row(0, ["txt"]) == {"txt": "here"}


# -------------------------------------------------------------------------------------------- JSON


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A folder with a config.json of 100 MB."""
    folder = tmp_path_factory.mktemp("large")
    (folder / "config.json").write_bytes(b'{"a": "' + b"x" * 100_000_000 + b'"}')
    return folder


def test_json_of_100_megabytes(large, tmp_path):
    for read, kind in (
        (read_config, FolderError),
        (load_workdir_config, ConfigError),
        (lambda folder: check_folder(folder, model_types=["t5"]), CheckpointError),
    ):
        with pytest.raises(kind, match=r"config.json has more than 67,108,864 bytes"):
            read(large)
    (tmp_path / "1.png").write_bytes(png())
    (tmp_path / "1.json").symlink_to(large / "config.json")
    with pytest.raises(SourceError, match="leads out of the folder"):
        open_folder(str(tmp_path))
    (tmp_path / "1.json").unlink()
    os.link(large / "config.json", tmp_path / "1.json")
    with pytest.raises(SourceError, match=r"1.json has more than 67,108,864 bytes"):
        open_folder(str(tmp_path))


@pytest.mark.parametrize("text", ['{"a":' * 500 + "1" + "}" * 500, "[" * 100_000])
def test_json_that_is_deep(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    (tmp_path / "metadata.jsonl").write_text(text)
    for read, kind in (
        (read_config, FolderError),
        (load_workdir_config, ConfigError),
        (lambda folder: open_folder(str(folder)), SourceError),
    ):
        with pytest.raises(kind, match="nests JSON deeper than 64 brackets"):
            read(tmp_path)


def test_json_up_to_the_depth():
    flat = json.dumps({"a": [[1]] * 1000, "b": "[" * 1000})
    assert decode_json(flat, name="x") == json.loads(flat)
    assert decode_json("[" * 64 + "]" * 64, name="x")
    with pytest.raises(InputError, match="x nests JSON"):
        decode_json("[" * 65 + "]" * 65, name="x")
    for text in ("{", "", "NaNs", b"\xff", "1" * 5000):
        with pytest.raises(InputError, match="x is not JSON"):
            decode_json(text, name="x")


def test_forms():
    form = {"a": [int], "b": (str, None), "c": {str: float}}
    good = {"a": [1, 2], "b": None, "c": {"d": 1, "e": 0.5}, "more": []}
    assert fits(good, form)
    for key, value in (("a", [True]), ("a", 1), ("b", 1), ("c", {"d": float("nan")}), ("c", [])):
        assert not fits(good | {key: value}, form)
    assert not fits({}, form)


# ------------------------------------------------------------------------------------- safetensors


@pytest.mark.parametrize("fault", SAFETENSORS)
def test_safetensors_with_hostile_headers(fault, tmp_path):
    data = SAFETENSORS[fault]
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(FolderError, match=r"model.safetensors"):
        open_tensors(tmp_path)
    with pytest.raises(InputError, match=r"^(the header of )?FILE"):  # the way of buckets
        start = data_start(data[:8], size=len(data), name="FILE")
        parse_header(data[8:start], size=len(data), dtypes=ITEM_BYTES, name="FILE")
    with pytest.raises(BlobError, match="the record"):
        unpack_blob(data, key="k")


def test_headers_that_are_sound():
    header = {
        "__metadata__": {"k": "{}"},
        "b": tensor("F32", [2, 0], 8, 8),
        "a": tensor("U8", [2, 4], 0, 8),
    }
    data = safetensors_file(header, bytes(range(8)))
    arrays, values = unpack_blob(data, key="k")
    assert values == {} and arrays["b"].shape == (2, 0)
    np.testing.assert_array_equal(arrays["a"], np.arange(8).reshape(2, 4))
    with pytest.raises(BlobError, match="no metadata 'other'"):
        unpack_blob(data, key="other")


def test_an_index_that_names_files_elsewhere(tmp_path):
    for name in ("../model.safetensors", "/tmp/model.safetensors", "a/b.safetensors", "..", ""):
        index = {"weight_map": {"a": name}}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(FolderError, match="in the index is no plain file name"):
            open_tensors(tmp_path)
    os.mkfifo(tmp_path / "pipe.safetensors")
    index = {"weight_map": {"a": "pipe.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FolderError, match=r"pipe.safetensors is no file that can be read"):
        open_tensors(tmp_path)


def test_a_config_of_a_billion_layers():
    table = t5_table(
        T5Config(vocab_size=4, d_model=2, d_ff=2, d_kv=1, num_layers=10**9, num_heads=1)
    )
    with pytest.raises(MappingError, match="1000000000 layers, and there are 1 tensors"):
        from_official({"shared.weight": np.zeros(2)}, {}, table=table)


def test_parquet_that_unpacks_to_much(tmp_path, monkeypatch):
    table = pa.table({"caption": ["a" * 10_000_000]})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd", use_dictionary=False)
    assert (tmp_path / "a.parquet").stat().st_size < 100_000
    monkeypatch.setattr("data_pipelines.sources.parquet.MAX_GROUP", 2**20)
    source = TableSource(ParquetTable(str(tmp_path / "a.parquet")))
    with pytest.raises(SampleError, match=r"a.parquet row group 0 has 10,\d+,\d+ bytes"):
        source.sample(0, rng())


# ----------------------------------------------------------------------------------------- pickles


def test_no_pickle_is_loaded(tmp_path):
    marker = tmp_path / "unpickled"
    bomb = hostile.pickle_bomb(marker)
    field = pa.field(
        "caption",
        pa.string(),
        metadata={
            b"ARROW:extension:name": b"arrow.py_extension_type",
            b"ARROW:extension:metadata": bomb,
        },
    )
    table = pa.table([pa.array(["a cat"])], schema=pa.schema([field]))
    pq.write_table(table, tmp_path / "a.parquet")
    assert TableSource(ParquetTable(str(tmp_path / "a.parquet"))).sample(0, rng()) == {
        "caption": "a cat"
    }
    for name in ("model.safetensors", "spiece.model", "config.json", "1.png"):
        (tmp_path / name).write_bytes(bomb)
    for read in (open_tensors, read_config, load_tokenizer):
        with pytest.raises(ValueError, match=r"damaged|not JSON|no sentencepiece"):
            read(tmp_path)
    with pytest.raises(InputError, match="no PNG"):
        open_picture(tmp_path / "1.png")
    with pytest.raises(BlobError):
        unpack_blob(bomb, key="k")
    assert not marker.exists()


def test_features_name_no_module_to_import(tmp_path, monkeypatch):
    (tmp_path / "evil_features.py").write_text("open(__file__ + '.ran', 'w').close()")
    monkeypatch.syspath_prepend(str(tmp_path))
    for features in (
        {"pythonClassName": "evil_features.Image"},
        {"type": "evil_features.Image", "content": {}},
        {
            "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
            "featuresDict": {"features": {"a": {"pythonClassName": "evil_features.Image"}}},
        },
    ):
        (tmp_path / "features.json").write_text(json.dumps(features))
        with pytest.raises(SourceError, match=r"'evil_features.Image' is not one of"):
            PreparedTable(epath.Path(tmp_path))
    assert "evil_features" not in sys.modules
    assert not (tmp_path / "evil_features.py.ran").exists()


# ------------------------------------------------------------------------------------------- video


def test_playlists_open_nothing(tmp_path):
    pytest.importorskip("av", reason="in the extra curate")
    (tmp_path / "secret.txt").write_text("secret")
    settings = ReadSettings(size=16, min_side=8)
    for text in (
        f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1,\nfile://{tmp_path}/secret.txt\n",
        f"ffconcat version 1.0\nfile {tmp_path}/secret.txt\n",
        "not a video",
    ):
        (tmp_path / "a.mp4").write_text(text)
        clips = VideoClips(tmp_path, settings=settings)
        with pytest.raises(ClipError) as caught:
            list(clips.shots("a.mp4"))
        assert caught.value.reason == "corrupt"


def test_video_with_too_many_pixels(tmp_path, monkeypatch):
    av = pytest.importorskip("av", reason="in the extra curate")
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
        container.mux([*stream.encode(frame), *stream.encode(None)])
    clips = VideoClips(tmp_path, settings=ReadSettings(size=16, min_side=8))
    assert len(list(clips.shots("a.mp4"))) == 1
    monkeypatch.setattr("data_pipelines.curate.clips.MAX_PIXELS", 1000)
    with pytest.raises(ClipError, match="64x48 pixels"):
        list(clips.shots("a.mp4"))
    outside = tmp_path / "clips"
    outside.mkdir()
    (outside / "b.mp4").symlink_to(tmp_path / "a.mp4")
    with pytest.raises(ClipError, match="leads out of the folder"):
        list(VideoClips(outside, settings=ReadSettings(size=16)).shots("b.mp4"))


# ------------------------------------------------------------------------------------------- texts


def test_controls_in_prompts():
    assert clean_text("a\x00 \x1b[31mred\x07\tcat\r\n\x85\udc80\u200d😀") == (
        "a [31mred cat   \u200d😀"
    )
    tokenizer = load_tokenizer(TOKENIZER)
    assert tokenizer.encode("a\x00 red\x07\tcat\ud800") == tokenizer.encode("a red cat")
    assert tokenizer.encode_named("\x1bIMG1 on\nIMG2") == tokenizer.encode_named("IMG1 on IMG2")
    assert tokenizer.encode("") == tokenizer.encode("\x00\x01")


def test_prompts_of_100000_words(caplog):
    folder = TOKENIZER.parent / "text_encoder"
    text = LoadedText.load(folder, tokenizer=TOKENIZER)
    with caplog.at_level(logging.WARNING, logger="absl"):
        states, mask = text.encode(["word " * 100_000, "w" * 3_000_000])
    assert states.shape[:2] == (2, text.max_length) and bool(mask.all())
    messages = [record.getMessage() for record in caplog.records]
    assert sum("a prompt is cut to" in message for message in messages) == 2
    assert any("3000000 characters is cut to 1048576" in message for message in messages)


def test_prompts_that_would_take_squares():
    assert parse_prompt("\\" * 300_000) == ("\\" * 300_000,)
    assert parse_prompt("\\" * 300_001 + "<img>") == ("\\" * 150_000 + "<img>",)
    parts = parse_prompt("a <img>b</img> " * 20_000)
    assert len(parts) == 40_001


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("spiece.model", b""),
        ("spiece.model", b"hello"),
        ("tokenizer_config.json", b"{"),
        ("tokenizer_config.json", b'{"extra_ids": 1e999}'),
        ("tokenizer_config.json", b'{"extra_ids": -5}'),
    ],
)
def test_damaged_tokenizers(tmp_path, name, data):
    for file in TOKENIZER.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ConfigError, match=name):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("merges", ["a b c\n", "a\n", "x yy\n"])
@pytest.mark.parametrize("vocabulary", ["[]", '{"a": "b"}', "{"])
def test_damaged_tokenizers_of_clip(tmp_path, vocabulary, merges):
    (tmp_path / "vocab.json").write_text(vocabulary)
    (tmp_path / "merges.txt").write_text(merges)
    with pytest.raises(ConfigError, match="is damaged"):
        load_tokenizer(tmp_path)


def test_objects_alone_are_settings(tmp_path):
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(InputError, match=r"a.json holds a list, not a JSON object"):
        read_object(tmp_path / "a.json")
    with pytest.raises(FileNotFoundError):
        read_object(tmp_path / "b.json")
