"""The account of a run's time over several starts."""

import json
import time

import pytest

from unidiff_jax.train.goodput import FILE, Goodput, summarize_goodput


def row(started, now, first_step, step, **seconds):
    return {
        "started": started,
        "now": now,
        "first_step": first_step,
        "step": step,
        "seconds": dict.fromkeys(("init", "compile", "data", "evaluate", "save"), 0.0) | seconds,
    }


def test_starts_add_up(tmp_path):
    rows = [
        row(0.0, 10.0, 0, 0, init=10.0),
        row(0.0, 110.0, 0, 50, init=10.0, compile=20.0, data=5.0, save=5.0),  # 70 s of steps
        row(150.0, 250.0, 40, 90, init=30.0, compile=10.0),  # ten steps are done again
    ]
    text = "".join(json.dumps(r) + "\n" for r in rows)
    (tmp_path / FILE).write_text(text + '{"started": 150.0, "no')  # cut by a kill
    found = summarize_goodput(tmp_path)
    assert found == pytest.approx(
        {
            "init": 40.0,
            "compile": 30.0,
            "data": 5.0,
            "evaluate": 0.0,
            "save": 5.0,
            "lost": 70 * 10 / 50,
            "down": 40.0,
            "step": 70 * 40 / 50 + 60,
            "total": 250.0,
            "goodput": (70 * 40 / 50 + 60) / 250,
        }
    )
    assert summarize_goodput(tmp_path / "nothing") == {}


def test_an_account_is_written_as_it_goes(tmp_path):
    account = Goodput(tmp_path)
    account.begin(0)
    with account.part("data"):
        time.sleep(0.05)
    account.row(3)
    found = summarize_goodput(tmp_path)
    assert found["data"] >= 0.05 and found["down"] == found["lost"] == 0
    assert sum(found[part] for part in ("init", "data", "step")) == pytest.approx(found["total"])
    assert len((tmp_path / FILE).read_text().splitlines()) == 2
