"""A run of a benchmark: known scores of trivial models, what is made again, what is refused."""

import json
import shutil

import numpy as np
import pytest
from fake_models import FakeGenerator, as_rgb, copy_source, fake_tools, score_of, scores_of
from PIL import Image

from unidiff_jax.config import ConfigError
from unidiff_jax.evals.benchmarks import get_benchmark
from unidiff_jax.evals.benchmarks import predictions as predictions_module
from unidiff_jax.evals.benchmarks.base import MINIWORLD_MARK, BenchmarkError
from unidiff_jax.evals.benchmarks.miniworld_layouts import write_layout
from unidiff_jax.evals.benchmarks.runner import SHUFFLED, choose_task, run_benchmark, score_table
from unidiff_jax.evals.results_schema import OFFICIAL, SUBSTITUTE
from unidiff_jax.sample.images import InputError

MAGICBRUSH = get_benchmark("magicbrush")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Five drawn sessions in MagicBrush's layout: three of one turn and two of two."""
    folder = tmp_path_factory.mktemp("magicbrush")
    write_layout("magicbrush", folder, count=5)
    return folder


def run(data, out, generator, **settings):
    tools = settings.pop("tools", None) or fake_tools()
    return run_benchmark(
        MAGICBRUSH, data=data, out=out, generator=generator, tools=tools, **settings
    )


def true_results(data):
    """The true picture of a request."""
    items = {item.id: item for item in MAGICBRUSH.read(predictions_module.as_path(data), "test")}
    return lambda request: as_rgb(items[request.id].truth["target"].open())


def test_a_copy_of_the_input_scores_what_is_known(data, tmp_path):
    results = run(data, tmp_path, FakeGenerator(copy_source))
    single = {"protocol": "magicbrush/single_turn"}
    for metric, known in (("clip_i", 1), ("dino", 1), ("l1", 0), ("l2", 0)):
        for score in scores_of(results, metric=metric, reference="input", **single):
            assert score["value"] == pytest.approx(known, abs=1e-6)
    for encoder in ("clip-b32", "clip-l14"):
        for captions in ("all", "captions differ"):
            found = score_of(
                results, metric="clip_dir", encoder=encoder, captions=captions, **single
            )
            assert found["value"] == 0
    for score in scores_of(results, **single):
        assert score["rows"]["copy input"] == pytest.approx(score["value"], abs=1e-6)
    # seven turns; five sessions
    l1 = scores_of(results, metric="l1", reference="gt")
    assert {s["protocol"]: s["n_items"] for s in l1} == {
        "magicbrush/single_turn": 7,
        "magicbrush/multi_turn": 5,
    }
    assert "magicbrush/multi_turn" in score_table(results)


def test_the_true_result_and_other_pairs(data, tmp_path):
    results = run(data, tmp_path, FakeGenerator(true_results(data)))
    for protocol in ("magicbrush/single_turn", "magicbrush/multi_turn"):
        best = score_of(results, metric="l1", reference="gt", protocol=protocol)
        assert best["value"] == 0 and best["rows"]["true result"] == 0
        assert best["rows"][SHUFFLED] > 0.01
        like = score_of(results, metric="dino", reference="gt", protocol=protocol)
        assert like["value"] == pytest.approx(1) and like["rows"][SHUFFLED] < 0.999
        assert like["rows"]["copy input"] < 1


def test_badges(data, tmp_path):
    results = run(data, tmp_path / "a", FakeGenerator(copy_source))
    assert {score["badge"] for score in results["scores"]} == {SUBSTITUTE}
    (mark,) = scores_of(results, metric="l1", reference="gt", protocol="magicbrush/single_turn")[0][
        "deviations"
    ][-1:]
    assert "MiniWorld" in mark
    # without the mark, and as many items as the suite has
    plain = tmp_path / "plain"
    shutil.copytree(data, plain)
    (plain / MINIWORLD_MARK).unlink()
    whole = predictions_module.dataclasses.replace(MAGICBRUSH, counts={"test": 9})
    results = run_benchmark(
        whole, data=plain, out=tmp_path / "b", generator=FakeGenerator(copy_source),
        tools=fake_tools(),
    )  # fmt: skip
    official = {
        (s["metric"], s["reference"], s["captions"], s["encoder"] and s["encoder"]["name"])
        for s in results["scores"]
        if s["badge"] == OFFICIAL
    }
    assert official == {
        ("l1", "gt", None, None),
        ("l2", "gt", None, None),
        ("clip_i", "gt", None, "clip-b32"),
        ("clip_t", "text", "all", "clip-b32"),
        ("dino", "gt", None, "dino-s16"),
    }
    tiny = fake_tools(substitute="it has two layers")
    results = run_benchmark(
        whole, data=plain, out=tmp_path / "b", generator=FakeGenerator(copy_source), tools=tiny
    )
    assert score_of(
        results, metric="dino", reference="gt", protocol="magicbrush/single_turn"
    )["badge"] == SUBSTITUTE  # fmt: skip


def test_only_what_is_missing_or_torn_is_made_again(data, tmp_path):
    first = FakeGenerator(copy_source)
    before = run(data, tmp_path, first)
    assert len(first.asked) == 9
    again = FakeGenerator(copy_source)
    results = run(data, tmp_path, again)
    assert not again.asked
    assert [s["value"] for s in results["scores"]] == [s["value"] for s in before["scores"]]
    made = sorted((tmp_path / "predictions").rglob("*.png"))
    torn, gone = made[0], made[5]
    torn.write_bytes(torn.read_bytes()[:100])
    gone.unlink()
    again = FakeGenerator(copy_source)
    run(data, tmp_path, again)
    assert sorted(again.asked) == sorted(f"{path.parent.name}/{path.stem}" for path in (torn, gone))
    with Image.open(torn) as picture:
        picture.load()
    # other settings: everything
    other = FakeGenerator(copy_source, num_steps=3)
    run(data, tmp_path, other)
    assert len(other.asked) == 9


def test_a_killed_run_goes_on(data, tmp_path):
    class KilledError(Exception):
        pass

    def kill(request):
        if len(dying.asked) > 5:
            raise KilledError
        return copy_source(request)

    dying = FakeGenerator(kill)
    with pytest.raises(KilledError):
        run(data, tmp_path, dying, batch=2)
    after = FakeGenerator(copy_source)
    results = run(data, tmp_path, after, batch=2)
    assert len(after.asked) == 9 - 4  # two batches of two were whole
    assert results["scores"][0]["n_failed"] == 0


def test_a_later_turn_is_made_again_with_the_earlier_one(data, tmp_path):
    run(data, tmp_path, FakeGenerator(copy_source))
    (first,) = tmp_path.glob("predictions/1001/1001_1.png")
    first.unlink()
    darker = FakeGenerator(lambda request: copy_source(request) * 0.5 - 0.5)
    run(data, tmp_path, darker)
    assert darker.asked == ["1001/1001_1", "1001/1001_iter_2"]


def test_failures_are_counted_and_nothing_stands_in_for_them(data, tmp_path):
    def some(request):
        if request.id.startswith("1000"):
            raise InputError("the prompt is too long")
        if request.id.startswith("1002"):
            return np.full((8, 8, 3), np.nan, np.float32)
        return copy_source(request)

    results = run(data, tmp_path, FakeGenerator(some), batch=4)
    found = score_of(results, metric="l1", reference="gt", protocol="magicbrush/single_turn")
    assert (found["n_items"], found["n_failed"]) == (7, 2)
    assert found["badge"] == SUBSTITUTE and found["failures"] == "left out of the mean"
    reasons = {
        path.stem: json.loads(path.read_text())["reason"]
        for path in (tmp_path / "failed").rglob("*.json")
    }
    assert reasons == {
        "1000_1": "the prompt is too long",
        "1002_1": "the model's output is not finite",
    }
    lines = (tmp_path / "report/samples/magicbrush-single_turn.jsonl").read_text().splitlines()
    values = {line["id"].split("_")[-2]: line["value"] for line in map(json.loads, lines)}
    assert len(lines) == 7 and [key for key, v in values.items() if v is None]
    # a model that can do it now
    after = FakeGenerator(copy_source)
    assert run(data, tmp_path, after)["scores"][0]["n_failed"] == 0
    assert sorted(after.asked) == ["1000/1000_1", "1002/1002_1"]
    assert not list((tmp_path / "failed").rglob("*.json"))


def test_pictures_of_another_program(data, tmp_path):
    run(data, tmp_path / "a", FakeGenerator(copy_source))
    made = tmp_path / "a/predictions"
    (made / "1003/1003_1.png").write_bytes(b"torn")
    results = run_benchmark(
        MAGICBRUSH, data=data, out=tmp_path / "b", predictions=made, tools=fake_tools()
    )
    found = score_of(results, metric="l1", reference="input", protocol="magicbrush/single_turn")
    assert (found["value"], found["n_failed"]) == (0, 1)
    assert results["params"] == 0
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(BenchmarkError, match="nothing of magicbrush: there is no"):
        run_benchmark(MAGICBRUSH, data=data, out=tmp_path / "c", predictions=empty)


def test_processes_make_their_own_chains(data, tmp_path, monkeypatch):
    asked = []
    for index in range(2):
        monkeypatch.setattr(
            predictions_module, "own_pieces", lambda pieces, index=index: pieces[index::2]
        )
        generator = FakeGenerator(copy_source)
        items = MAGICBRUSH.read(predictions_module.as_path(data), "test")
        store = predictions_module.Store(
            predictions_module.as_path(tmp_path), "picture", generator.settings
        )
        predictions_module.make_predictions(
            MAGICBRUSH, items, generator=generator, task="edit", store=store, batch=3
        )
        asked.append(set(generator.asked))
    assert not asked[0] & asked[1] and len(asked[0] | asked[1]) == 9
    assert {key.split("/")[0] for key in asked[0]} == {"1000", "1002", "1004"}


def test_limit_and_what_has_no_network(data, tmp_path):
    none = run_benchmark(
        MAGICBRUSH, data=data, out=tmp_path, generator=FakeGenerator(copy_source), limit=2
    )
    assert {score["metric"] for score in none["scores"]} == {"l1", "l2"}
    assert sum("Not scored" in text for text in none["deviations"]) == 3
    assert any("2 items, and not the 1571" in text for text in none["scores"][0]["deviations"])


def test_refusals(data, tmp_path):
    generator = FakeGenerator(copy_source)
    with pytest.raises(ConfigError, match="give a model, or"):
        run_benchmark(MAGICBRUSH, data=data, out=tmp_path)
    with pytest.raises(ConfigError, match="--split train: magicbrush has test, dev"):
        run(data, tmp_path, generator, split="train")
    with pytest.raises(BenchmarkError, match=r"no such folder; edit_sessions\.json"):
        run(tmp_path / "none", tmp_path, generator)
    with pytest.raises(ConfigError, match="benchmark 'magic' is unknown; one of emu_edit"):
        get_benchmark("magic")
    generator.tasks = ("depth",)
    with pytest.raises(ConfigError, match="needs the task edit; fake was trained on depth"):
        choose_task(MAGICBRUSH, generator)
    assert choose_task(MAGICBRUSH, generator, task="edit") == "edit"
    with pytest.raises(ConfigError, match="--task depth: magicbrush can be asked as edit"):
        choose_task(MAGICBRUSH, generator, task="depth")


def test_one_benchmarks_features_are_not_anothers(tmp_path):
    tools = fake_tools()
    for seed in range(2):  # pictures of the same names
        write_layout("magicbrush", tmp_path / f"data{seed}", count=2, seed=seed)
        generator = FakeGenerator(copy_source)
        results = run(tmp_path / f"data{seed}", tmp_path / f"{seed}", generator, tools=tools)
        fresh = run(tmp_path / f"data{seed}", tmp_path / f"{seed}", generator)
        for metric in ("dino", "clip_t"):
            shared, own = (
                [score["value"] for score in scores_of(found, metric=metric)]
                for found in (results, fresh)
            )
            assert shared == own
