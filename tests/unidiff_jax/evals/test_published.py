"""Published values are complete, and those known to be wrong say so."""

import json
from pathlib import Path

import jsonschema
import pytest

from unidiff_jax.evals import published
from unidiff_jax.evals.published import EVIDENCE, benchmarks, published_values
from unidiff_jax.evals.results_schema import REFERENCES

CONTENT = json.loads(Path(published.__file__).with_name("published.json").read_text())

TEXT = {"type": "string", "minLength": 3}
ID = {"type": "string", "pattern": "^[a-z0-9][a-z0-9_./]*$"}
SCHEMA = {
    "type": "object",
    "required": ["papers", "tables"],
    "additionalProperties": False,
    "properties": {
        "papers": {
            "additionalProperties": {
                "type": "object",
                "required": ["title", "source"],
                "additionalProperties": False,
                "properties": {"title": TEXT, "source": TEXT},
            }
        },
        "tables": {
            "type": "array",
            "items": {
                "type": "object",
                "required": [
                    *("paper", "table", "benchmark", "evidence", "encoder", "columns", "rows")
                ],
                "additionalProperties": False,
                "properties": {
                    "paper": {"enum": sorted(CONTENT["papers"])},
                    "table": TEXT,
                    "benchmark": ID,
                    "protocol": ID,
                    "evidence": {"enum": list(EVIDENCE)},
                    "encoder": TEXT,
                    "note": TEXT,
                    "row_notes": {"type": "object", "additionalProperties": TEXT},
                    "columns": {
                        "type": "array",
                        "minItems": 1,
                        "items": {
                            "type": "object",
                            "required": ["metric", "printed", "reference"],
                            "additionalProperties": False,
                            "properties": {
                                "metric": ID,
                                "printed": {"type": "string", "minLength": 1},
                                "scale": {"enum": [100, 1000]},
                                "reference": {"enum": [*REFERENCES, "not stated"]},
                                "fault": TEXT,
                            },
                        },
                    },
                    "rows": {
                        "type": "array",
                        "minItems": 1,
                        "items": {
                            "type": "array",
                            "minItems": 2,
                            "prefixItems": [TEXT],
                            "items": {"type": ["string", "null"], "pattern": r"^\d*\.?\d+$"},
                        },
                    },
                },
            },
        },
    },
}


def test_the_tables_have_the_form_that_the_reader_expects():
    jsonschema.validate(CONTENT, SCHEMA)
    for table in CONTENT["tables"]:
        methods = [row[0] for row in table["rows"]]
        assert len(methods) == len(set(methods)), table["table"]
        assert set(table.get("row_notes", {})) <= set(methods), table["table"]
        assert all(len(row) == 1 + len(table["columns"]) for row in table["rows"])
        if "protocol" in table:
            assert table["protocol"].startswith(table["benchmark"] + "/")


def test_values_are_what_is_printed():
    assert len(benchmarks()) >= 20
    for benchmark in benchmarks():
        for value in published_values(benchmark):
            assert value.value * value.scale == pytest.approx(float(value.printed), rel=1e-12)
            assert value.evidence in EVIDENCE and value.encoder and value.source
            if value.metric.startswith(("clip", "dino", "delta", "absrel", "identity")):
                assert 0 < value.value <= 1, value


def find(benchmark, metric, method, **others):
    found = [
        value
        for value in published_values(benchmark, metric)
        if value.method == method and all(getattr(value, k) == v for k, v in others.items())
    ]
    assert len(found) == 1, found
    return found[0]


@pytest.mark.parametrize(
    ("benchmark", "metric", "method", "paper", "value"),
    [
        ("emu_edit", "clip_dir", "UniReal", "UniReal", 0.127),
        ("magicbrush", "dino", "UniReal", "UniReal", 0.837),
        ("magicbrush", "clip_t", "UniVG", "UniVG", 0.295),
        ("dreambench", "clip_i", "ELITE", "UniReal", 0.772),
        ("dreambench", "dino", "UNIMO-G", "UNIMO-G", 0.668),
        ("dreambench", "clip_t", "OneDiffusion", "OneDiffusion", 0.297),
        ("nyuv2", "absrel", "OneDiffusion", "OneDiffusion", 0.068),
        ("diode", "delta1", "OneDiffusion", "OneDiffusion", 0.752),
        ("coco_fid", "fid", "UNIMO-G", "UNIMO-G", 8.36),
        ("pie_bench", "lpips", "OneDiffusion", "OneDiffusion", 0.05667),
        ("gso_pose", "cc_0.3", "RayDiffusion", "OneDiffusion", 0.20),
        ("unsplash50", "identity", "UniVG", "UniVG", 0.329),
    ],
)
def test_known_values(benchmark, metric, method, paper, value):
    assert find(benchmark, metric, method, paper=paper).value == pytest.approx(value)


def test_known_errors_are_flagged():
    assert "ELITE" in find("dreambench", "clip_i", "IP-Adapter (Flux)").fault
    assert find("dreambench", "clip_i", "ELITE").fault == ""
    mixed = [v for v in published_values("emu_edit", "clip_t") if v.paper == "UniReal"]
    assert len(mixed) == 10 and all("mixes encoders" in value.fault for value in mixed)
    assert not any(value.fault for value in published_values("emu_edit", "dino"))


def test_all_of_univg_is_second_hand():
    values = [v for b in benchmarks() for v in published_values(b) if v.paper == "UniVG"]
    assert values and {value.evidence for value in values} == {"secondary copy"}


def test_narrower_protocols_stay_apart():
    methods = {v.table for v in published_values("multibench", "dino", protocol="multibench/all")}
    assert methods == {"MultiBench"}
    both = {v.table for v in published_values("multibench", "dino", protocol="multibench/two")}
    assert both == {"MultiBench", "MultiBench, two entities"}
