"""Random and damaged input to every parser: a value, or an error of the parser's own kind.

`Target.inputs` are as many as the marked run tries (`-m fuzz`), 100,000 in all; the default suite
tries a few of each.
"""

import copy
import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pair_data
import pytest
import tensorflow_datasets.public_api as tfds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw_data import png, write_scene

from data_pipelines import shards
from data_pipelines.curate.clips import ClipError
from data_pipelines.curate.mask_folders import (
    list_youtube_vis,
    read_davis_names,
    youtube_vis_shot,
)
from data_pipelines.curate.pairs import PairError, decode_pair, encode_pair, open_pairs
from data_pipelines.curate.run_lengths import RunLengthError, decode_mask
from data_pipelines.encoded import (
    EncodedError,
    EncodedExample,
    EncodedSource,
    decode_record,
    encode_record,
)
from data_pipelines.miniworld import generate, manifest, records
from data_pipelines.miniworld.manifest import RecordsError
from data_pipelines.mixture import name_places
from data_pipelines.sources.base import SampleError, SourceError
from data_pipelines.sources.folders import open_folder
from data_pipelines.sources.pairs import BUILDERS, build
from data_pipelines.sources.prepared import PreparedTable, find_prepared
from data_pipelines.sources.scenes import SceneSource
from data_pipelines.sources.tables import TableSource
from data_pipelines.sources.tars import TarTable
from data_pipelines.subjects.records import Subject as Thing
from data_pipelines.subjects.records import (
    SubjectError,
    decode_subject,
    encode_subject,
    open_subjects,
)
from unidiff_jax.config import ConfigError
from unidiff_jax.export.files import FolderError, open_tensors, read_config
from unidiff_jax.export.mapping import (
    CLIP_TEXT_TABLE,
    DIT_TABLE,
    T5_TABLE,
    MappingError,
    Table,
    from_official,
    nest,
    to_official,
    unified_table,
)
from unidiff_jax.models.vae import VAEConfig
from unidiff_jax.outside import InputError, decode_json, inside
from unidiff_jax.prompts import format_prompt, parse_prompt, resolve_prompt
from unidiff_jax.sample.denoiser import NextDiTConfig
from unidiff_jax.sample.encoders import released_text_config
from unidiff_jax.sample.multimodal import multimodal_config
from unidiff_jax.sample.onediffusion import FlowMatchSchedule
from unidiff_jax.tasks import STYLES, TASKS, get_task
from unidiff_jax.text import load_tokenizer
from unidiff_jax.train.workdir import load_workdir_config

GOLDEN = pathlib.Path(__file__).resolve().parent / "golden" / "onediffusion"

# ---------------------------------------------------------------------------------------- the input

PIECES = ("<img>", "</img>", "\\", "<p>", "{caption}", "{", "IMG1", "RES2", "[[", "\0", "\ud800")
PIECES += ("../", "/etc/passwd", "x.png", "🦊", "\u202e", "\x1b[31m", " ", "a red cube", "gs://b")

TEXTS = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=12).map("".join),
    st.text(st.characters(codec=None), max_size=30),
)

JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 1, 2, 255, 256, 10**6, 2**31, 2**63, 10**30, 10**400]),
    st.floats(),
    TEXTS,
    st.sampled_from(["1", "a/b", ".."]),
    st.sampled_from([[], {}, [[]], [None], {"a": 1}, [1, 2], ["a"], [[1e308]]]).map(copy.deepcopy),
)


@functools.cache
def places(text):
    """Paths of all values in a JSON text."""
    found = []

    def walk(value, path):
        found.append(path)
        if isinstance(value, dict | list):
            for key in value if isinstance(value, dict) else range(len(value)):
                walk(value[key], (*path, key))

    walk(json.loads(text), ())
    return found


@st.composite
def damaged_json(draw, good):
    """A JSON value with some parts exchanged, removed or added."""
    value = copy.deepcopy(good)
    for path in draw(st.lists(st.sampled_from(places(json.dumps(good))), max_size=3)):
        if not path:
            if draw(st.integers(0, 9)) == 0:
                value = draw(JUNK)
            continue
        *parents, last = path
        node = value
        try:
            for key in parents:
                node = node[key]
            kind = draw(st.integers(0, 3))
            if kind == 0:
                del node[last]
            elif kind == 1 and isinstance(node, dict):
                node[draw(TEXTS)] = node[last]
            else:
                node[last] = draw(JUNK)
        except (LookupError, TypeError):  # an earlier change took it away
            continue
    return value


@st.composite
def damaged_bytes(draw, good):
    """Bytes with some exchanged, cut short, or none of them."""
    if draw(st.integers(0, 19)) == 0:
        return draw(st.binary(max_size=200))
    data = bytearray(good)
    near = st.integers(0, min(len(data), 400) - 1)  # where headers are
    spots = st.one_of(near, st.integers(0, len(data) - 1))
    for place, byte in draw(st.lists(st.tuples(spots, st.integers(0, 255)), max_size=4)):
        data[place] = byte
    if draw(st.integers(0, 4)) == 0:
        del data[draw(st.integers(0, len(data))) :]
    return bytes(data)


def damaged_blob(good):
    """A safetensors blob whose header or bytes are damaged; what texts it holds changes too."""
    start = 8 + int.from_bytes(good[:8], "little")
    header = json.loads(good[8:start])
    [(key, text)] = header.pop("__metadata__").items()

    def join(parts):
        head, values, keep = parts
        if isinstance(head, dict) and keep:
            head = head | {"__metadata__": {key: json.dumps(values)}}
        written = json.dumps(head).encode()
        return len(written).to_bytes(8, "little") + written + good[start:]

    same, values = st.just(header), damaged_json(json.loads(text))
    return st.one_of(
        damaged_bytes(good),
        st.tuples(damaged_json(header), values, st.booleans()).map(join),
        st.tuples(same, values, st.just(True)).map(join),
    )


def rng():
    return np.random.default_rng(0)


# -------------------------------------------------------------------------------------- the parsers


@dataclasses.dataclass(frozen=True)
class Target:
    """A parser.

    Attributes:
      inputs: how many the marked run tries.
      make: takes a folder of its own; gives the strategy and a function of one input.
      errors: what the parser may raise.
    """

    inputs: int
    make: Callable[[pathlib.Path], tuple[st.SearchStrategy, Callable[[Any], Any]]]
    errors: tuple[type[Exception], ...]


def prompts(folder):
    (folder / "x.png").write_bytes(png())

    def read(text):
        parts = parse_prompt(text)
        assert parse_prompt(format_prompt(parts)) == parts
        for place in (None, folder):
            resolve_prompt(parts, names={"🦊": folder / "x.png"}, folder=place)

    return TEXTS, read


def prompt_lists(folder):
    part = st.one_of(TEXTS, st.none(), st.integers(), st.just(pathlib.Path("x.png")), st.binary())
    return st.lists(part, max_size=6), parse_prompt


def templates(folder):
    tokenizer = load_tokenizer(GOLDEN / "tinypipe" / "tokenizer")
    choices = st.tuples(
        st.sampled_from(list(TASKS)), st.sampled_from(STYLES), TEXTS, TEXTS, st.booleans()
    )

    def read(choice):
        name, style, first, second, own = choice
        task = get_task(name)
        item = {field: (first, second)[i % 2] for i, field in enumerate(task.prompt_fields)}
        parts = {"context": {"base": first, "tags": [first, second]}, "base": {"base": first}}
        own = parts.get(style, {}) if own else {}
        prompt = name_places(task.write(item | {"tags": [second]}, style=style, **own), task)
        ids, names = tokenizer.encode_named(prompt)
        assert len(ids) == len(names) and ids[-1] == tokenizer.end_id
        assert all(0 <= i < tokenizer.vocab_size + 100 for i in ids)
        tokenizer.encode(prompt)

    return choices, read


def json_file(path, good, read):
    """Reads a folder whose file has a damaged JSON value in it, or damaged bytes."""
    text = json.dumps(good).encode()

    def run(content):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        path.write_bytes(data)
        read()

    damaged = damaged_json(good)
    return st.one_of(damaged, damaged, damaged, damaged_bytes(text)), run


def write_folder(folder, name, blobs, *, schema, values, **known):
    """A finished folder of one shard."""
    (folder / "manifest.json").write_text(json.dumps({"schema": schema, **values}))
    (file,) = shards.shard_names(name, 1)
    count = shards.write_shard(folder / file, blobs)
    shards.write_entry(folder / file, records=count, **known)
    return (folder / file).with_suffix(".json")


THING = Thing(np.full((2, 4, 4, 4), 9, np.uint8), "fox", "Animals & Nature", "🦊")
EXAMPLE = EncodedExample(
    [np.ones((2, 2, 4)), np.ones((2, 2, 4))],
    [np.ones((2, 2, 4)), np.zeros((2, 2, 4))],
    {"instruction": ["make it red", "red"]},
    ("a tag",),
    region=np.ones((2, 2)),
)
LARGEST = {"places": 8, "frames": 2, "channels": 4}
SHARDED = {
    "pairs": (
        "pairs",
        lambda: [encode_pair(pair_data.make_pair())],
        {"schema": "pair/1", "values": {"shards": 1}},
        open_pairs,
    ),
    "subjects": (
        "train",
        lambda: [encode_subject(THING)],
        {
            "schema": "subjects/1",
            "values": {"shards": 1, "size": 4},
            "subjects": [{"words": "fox", "group": "Animals & Nature"}],
        },
        lambda folder: open_subjects(folder, "train"),
    ),
    "encoded": (
        "train",
        lambda: [encode_record(EXAMPLE)],
        {
            "schema": "encoded/1",
            "values": {
                "task": "edit",
                "shards": {"train": 1, "validation": 1},
                "autoencoder": {"latent_channels": 4},
            },
            "largest": LARGEST,
        },
        lambda folder: EncodedSource([folder], task=get_task("edit"), split="train"),
    ),
}


def sharded(kind, *, entry):
    """Opens a folder whose manifest, or the JSON of whose shard, is damaged."""

    def make(folder):
        name, blobs, known, read = SHARDED[kind]
        described = write_folder(folder, name, blobs(), **known)
        path = described if entry else folder / "manifest.json"
        return json_file(path, json.loads(path.read_text()), lambda: read(folder))

    return make


RENDERED = manifest.Settings(size=16, counts={"train": 2}, shards=1, clip_frames=2)


def miniworld_manifest(folder):
    generate.generate(folder, RENDERED, progress="none")
    path = folder / manifest.NAME
    good = json.loads(path.read_text())
    return json_file(path, good, lambda: records.open_records(folder, "train"))


def scene(folder):
    write_scene(folder, count=3)
    path = folder / "transforms.json"
    source = SceneSource(str(folder), num_views=2)
    return json_file(path, json.loads(path.read_text()), lambda: source.sample(0, rng()))


def metadata(folder):
    (folder / "1.png").write_bytes(png())
    row = {"file_name": "1.png", "text": "a cat", "more": {"n": 1, "list": ["a", "b"]}}
    path = folder / "metadata.jsonl"

    def read():
        source = TableSource(open_folder(str(folder)), optional_texts=["text"], fields=None)
        source.sample(0, rng())

    return json_file(path, row, read)


def metadata_commas(folder):
    (folder / "1.png").write_bytes(png())
    path = folder / "metadata.csv"
    cells = st.one_of(TEXTS, st.sampled_from(["1.png", "file_name", '"', '"a,\n"', ",", ""]))
    rows = st.lists(st.lists(cells, max_size=4).map(",".join), max_size=4).map("\n".join)

    def read(text):
        path.write_bytes(b"file_name,text\n" + text.encode(errors="surrogatepass"))
        source = TableSource(open_folder(str(folder)))
        for index in range(len(source)):
            source.sample(index, rng())

    return rows, read


def youtube_vis(folder):
    good = {
        "videos": [{"id": 7, "file_names": ["a/0.jpg"]}],
        "categories": [{"id": 3, "name": "dog"}],
        "annotations": [
            {
                "video_id": 7,
                "category_id": 3,
                "segmentations": [{"size": [16, 24], "counts": [0, 384]}],
            }
        ],
    }
    (folder / "JPEGImages" / "a").mkdir(parents=True)
    (folder / "JPEGImages" / "a" / "0.jpg").write_bytes(png())

    def read():
        for clip in list_youtube_vis(folder):
            youtube_vis_shot(folder, clip, size=8)

    return json_file(folder / "instances.json", good, read)


def davis_names(folder):
    good = {"bear": {"1": "bear", "2": "the tree"}, "cat": {}}
    return json_file(folder / "davis_semantics.json", good, lambda: read_davis_names(folder))


def run_lengths(folder):
    good = {"size": [2, 3], "counts": [1, 3, 2]}
    counts = st.one_of(st.text("0123Pabc o", max_size=8), st.lists(st.integers(), max_size=5))
    texts = counts.map(lambda runs: {"size": [2, 3], "counts": runs})
    return st.one_of(damaged_json(good), texts), decode_mask


INFO = {"name": "set", "version": "1.0.0", "fileFormat": "array_record"}


def prepared(name):
    def make(folder):
        place = folder / "set" / "1.0.0"
        place.mkdir(parents=True)
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(),
                "objects": tfds.features.Sequence({"text": tfds.features.Text()}),
                "label": tfds.features.ClassLabel(names=["a", "b"]),
            }
        )
        features.save_config(place)
        info = INFO | {
            "splits": [
                {
                    "name": "train",
                    "shardLengths": ["1"],
                    "numBytes": "100",
                    "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                }
            ],
        }
        (place / "dataset_info.json").write_text(json.dumps(info))
        shards.write_shard(place / "set-train.array_record-00000-of-00001", [b"\x0a\x00"])
        path = place / name

        def read():
            table = PreparedTable(find_prepared(str(folder), "set"), split="train")
            table.values(0, table.features)

        return json_file(path, json.loads(path.read_text()), read)

    return make


def tar(folder):
    import hostile

    whole = b""
    for name, data in (("1.png", png()), ("1.txt", b"a cat"), ("1.json", b'{"a": {"b": 1}}')):
        whole += hostile.tar_header(name, size=len(data)) + data + bytes(-len(data) % 512)
    path = folder / "a.tar"

    def read(data):
        path.write_bytes(data)
        source = TableSource(TarTable(str(path)))
        for index in range(len(source)):
            source.sample(index, rng())

    return damaged_bytes(whole + bytes(1024)), read


def names(folder):
    (folder / "a").mkdir()
    (folder / "a" / "out").symlink_to("/etc")
    root = folder.resolve()
    parts = st.sampled_from(["a", "out", "..", ".", "", "passwd", "\\", "C:", "\0", "~", "🦊"])

    def read(name):
        path = inside(folder, name)
        assert pathlib.Path(path).resolve().is_relative_to(root)

    return st.one_of(st.lists(parts, max_size=5).map("/".join), TEXTS, JUNK), read


def any_json(folder):
    damaged = damaged_bytes(b'{"a": [1, 2, {"b": "c"}], "d": 1e5}')
    return st.one_of(damaged, TEXTS), functools.partial(decode_json, name="x")


def weight_headers(folder):
    from safetensors.numpy import save

    path = folder / "model.safetensors"
    good = save({"a": np.ones((2, 3), np.float32), "b": np.ones(4, np.uint8)}, {"format": "pt"})

    def read(data):
        path.write_bytes(data)
        for tensor in open_tensors(folder).values():
            assert tensor[...].shape == tensor.shape

    return damaged_blob(good.replace(b'"pt"', b'"11"')), read


def weight_index(folder):
    from safetensors.numpy import save_file

    save_file({"a": np.ones(3, np.float32)}, folder / "model-1.safetensors")
    good = {"metadata": {"total_size": 12}, "weight_map": {"a": "model-1.safetensors"}}
    path = folder / "model.safetensors.index.json"
    return json_file(path, good, lambda: open_tensors(folder))


def model_configs(folder):
    part = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = json.loads((GOLDEN / "tinypipe" / "text_encoder" / "config.json").read_text())
    clip = {"model_type": "clip", "text_config": part, "vision_config": part, "projection_dim": 4}
    blip2 = {
        "model_type": "blip-2",
        "text_config": text | {"model_type": "t5"},
        "vision_config": part,
        "qformer_config": part,
        "num_query_tokens": 4,
    }
    (folder / "text").mkdir()

    def text_config(values):
        (folder / "text" / "config.json").write_text(json.dumps(values))
        return released_text_config(folder / "text", dtype="float32")

    golden = {
        NextDiTConfig.from_json: GOLDEN / "tiny_gqa" / "config.json",
        VAEConfig.from_json: GOLDEN / "tinypipe" / "vae" / "config.json",
        FlowMatchSchedule.from_json: GOLDEN / "tinypipe" / "scheduler" / "scheduler_config.json",
    }
    readers = [(read, json.loads(path.read_text())) for read, path in golden.items()]
    readers += [(text_config, text), (text_config, clip), (multimodal_config, blip2)]
    readers = [(read, good) for read, good in readers]
    inputs = [damaged_json(good).map(lambda v, r=read: (r, v)) for read, good in readers]

    def read(choice):
        reader, values = choice
        if not isinstance(values, dict):
            (folder / "config.json").write_text(json.dumps(values))
            values = read_config(folder)
        reader(values)

    return st.one_of(inputs), read


def workdirs(folder):
    good = {"name": "a", "model": {"depth": 2, "sizes": [1, 2]}, "seed": None}
    return json_file(folder / "config.json", good, lambda: load_workdir_config(folder))


def mapping(table, *, unified=False):
    """Tensors whose names, shapes and number are damaged, into a model of this table."""

    def make(folder):
        depth = 2
        shapes = {}
        for entry in table:
            rank = {"vector": 1, "matrix": 2, "conv": 4}[entry.kind] + entry.stacked
            shapes[entry.path] = np.zeros((depth if entry.stacked else 3, *(2,) * (rank - 1)))
        tree = nest(shapes)
        known = unified_table(tree, depth=depth) if unified else Table(tuple(table), depth=depth)
        official = to_official(tree, table=known)
        sound = {name: list(value.shape) for name, value in official.items()}
        shape = st.lists(st.integers(0, 3), max_size=5)
        change = st.tuples(st.sampled_from(list(sound)), st.integers(0, 4), shape, TEXTS)

        def read(changes):
            tensors = {name: np.zeros(shape, np.float32) for name, shape in sound.items()}
            for name, kind, shape, text in changes:
                value = tensors.pop(name, np.zeros(1, np.float32))
                if kind > 2:
                    tensors[name] = value
                elif kind == 1:
                    tensors[name] = np.zeros(shape, np.float32)
                elif kind == 2:
                    tensors[text] = value
            from_official(tensors, tree, table=known)

        return st.lists(change, max_size=3), read

    return make


def pair_records(folder):
    tasks = [get_task(name) for name in BUILDERS]

    def read(blob):
        pair = decode_pair(blob)
        for task in tasks:
            try:
                build(pair, task=task, rng=rng())
            except SampleError:
                continue

    small = pair_data.boxes_of_ids({1: (2, 2, 8, 8), 2: (8, 8, 14, 14)}, size=(16, 16))
    pair = pair_data.make_pair(first=small, last=small, names={1: "a ball", 2: "the box"})
    return damaged_blob(encode_pair(pair)), read


def subject_records(folder):
    return damaged_blob(encode_subject(THING)), decode_subject


def encoded_records(folder):
    return damaged_blob(encode_record(EXAMPLE)), decode_record


def miniworld_records(folder):
    good = records.encode(generate.make_record(RENDERED, "train", 0))
    return damaged_blob(good), records.decode


OF_SOURCES = (SourceError, SampleError)

TARGETS = {
    "prompts": Target(12_000, prompts, (InputError,)),
    "prompts as lists": Target(3_000, prompt_lists, (InputError,)),
    "task templates": Target(12_000, templates, ()),  # they take every text
    "manifests of pairs": Target(2_500, sharded("pairs", entry=False), (PairError,)),
    "manifests of subjects": Target(2_500, sharded("subjects", entry=False), (SubjectError,)),
    "manifests of encoded data": Target(2_500, sharded("encoded", entry=False), (EncodedError,)),
    "manifests of MiniWorld": Target(3_000, miniworld_manifest, (RecordsError,)),
    "shards of pairs": Target(2_000, sharded("pairs", entry=True), (PairError,)),
    "shards of subjects": Target(2_000, sharded("subjects", entry=True), (SubjectError,)),
    "shards of encoded data": Target(2_000, sharded("encoded", entry=True), (EncodedError,)),
    "transforms.json": Target(4_000, scene, OF_SOURCES),
    "metadata.jsonl": Target(4_000, metadata, OF_SOURCES),
    "metadata.csv": Target(3_000, metadata_commas, OF_SOURCES),
    "instances.json": Target(4_000, youtube_vis, (SourceError, ClipError)),
    "davis_semantics.json": Target(2_000, davis_names, OF_SOURCES),
    "run lengths": Target(3_000, run_lengths, (RunLengthError,)),
    "dataset_info.json": Target(1_500, prepared("dataset_info.json"), OF_SOURCES),
    "features.json": Target(1_500, prepared("features.json"), OF_SOURCES),
    "tars": Target(3_000, tar, OF_SOURCES),
    "names of files": Target(4_000, names, (InputError,)),
    "JSON": Target(3_000, any_json, (InputError,)),
    "config.json of workdirs": Target(2_000, workdirs, (ConfigError,)),
    "config.json of models": Target(4_000, model_configs, (ConfigError, FolderError)),
    "safetensors": Target(5_000, weight_headers, (FolderError,)),
    "safetensors indexes": Target(2_000, weight_index, (FolderError,)),
    "mapping of the transformer": Target(3_000, mapping(DIT_TABLE), (MappingError,)),
    "mapping of T5": Target(2_000, mapping(T5_TABLE), (MappingError,)),
    "mapping of CLIP": Target(2_000, mapping(CLIP_TEXT_TABLE), (MappingError,)),
    "mapping of our layout": Target(2_000, mapping(DIT_TABLE, unified=True), (MappingError,)),
    "records of pairs": Target(2_500, pair_records, (PairError,)),
    "records of subjects": Target(5_000, subject_records, (SubjectError,)),
    "records of encoded data": Target(5_000, encoded_records, (EncodedError,)),
    "records of MiniWorld": Target(4_000, miniworld_records, (RecordsError,)),
}
"""Each parser by name."""

FEW = 20

FOUND = (
    ("names of files", "\ud800"),
    ("config.json of workdirs", {"../": "a"}),
    ("metadata.jsonl", {"file_name": "1.png", "text": 10**400}),
    ("dataset_info.json", INFO | {"splits": [{"name": None}]}),
    ("dataset_info.json", INFO | {"splits": 1}),
    ("dataset_info.json", INFO | {"splits": [{"name": "train", "filepathTemplate": True}]}),
    (
        "manifests of MiniWorld",
        {"schema": manifest.SCHEMA, "settings": {"size": 16, "counts": {"train": 2**63}}},
    ),
    ("shards of encoded data", {"records": "0", "bytes": 131072, "largest": LARGEST}),
    ("config.json of models", (VAEConfig.from_json, {"up_block_types": True})),
)
"""Inputs that once were errors of another kind."""


@pytest.mark.parametrize(("name", "value"), FOUND)
def test_what_was_found(name, value, tmp_path):
    target = TARGETS[name]
    _, read = target.make(tmp_path)
    try:
        read(value)
    except target.errors as error:
        assert str(error)


def test_the_marked_run_tries_100000_inputs():
    assert sum(target.inputs for target in TARGETS.values()) >= 100_000


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("share", [False, pytest.param(True, marks=pytest.mark.fuzz)])
def test_a_value_or_a_typed_error(name, share, tmp_path, record_property):
    target = TARGETS[name]
    inputs = target.inputs if share else FEW
    strategy, read = target.make(tmp_path)
    seen = {"accepted": 0, "refused": 0}

    @settings(
        max_examples=inputs,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def run(value):
        try:
            read(value)
        except target.errors as error:
            assert str(error)
            seen["refused"] += 1
        else:
            seen["accepted"] += 1

    run()
    record_property("fuzz", (name, seen["accepted"], seen["refused"]))
    assert sum(seen.values()) >= inputs
    if share and target.errors:
        assert min(seen.values()) > 0, seen  # neither all sound nor all damaged
