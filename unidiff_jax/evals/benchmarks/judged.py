"""Suites that a detector or another model judges, as benchmarks that are made here.

python -m launch.evaluate --benchmark geneval --data DIR --model DIR --out runs/geneval
    # then the suite's own script on runs/geneval/export, and:
python -m launch.judged --suite geneval --data DIR --results FILE --date DAY \
    --report runs/geneval/report

`evals.judged` knows their prompts, layouts and results. Here a prompt becomes items, one a picture,
and a run leaves

    export/             the pictures in the layout that the suite's judge reads
    exported/<id>.json  what was exported of each prompt: the digest of its pictures
    report/run.json     the run: model, settings, seeds, versions; the judge's scores join it

A prompt is exported when all of its pictures are made, and again when one was made anew.
"""

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from PIL import Image

from data_pipelines.objects import name_references
from unidiff_jax.evals.benchmarks.base import (
    Benchmark,
    BenchmarkError,
    Data,
    Item,
    MissingError,
    Picture,
)
from unidiff_jax.evals.benchmarks.predictions import Store, own_predictions
from unidiff_jax.evals.benchmarks.subject_driven import TASKS
from unidiff_jax.evals.judged import (
    Prompt,
    Suite,
    check_files,
    export,
    get_suite,
    picture_names,
)
from unidiff_jax.evals.results_schema import ReportError
from unidiff_jax.paths import write_json
from unidiff_jax.processes import own_pieces
from unidiff_jax.tasks import PLACEHOLDER

EXPORT = "export"
"""Folder of the pictures in the judge's layout, beside `predictions`."""

THING = "object"
"""What prompts call a reference whose name the suite does not say."""

Size = tuple[int, int] | None


def read_prompts(folder: epath.Path, split: str, *, suite: Suite, size: Size) -> list[Item]:
    """The suite's prompts as items, one a picture, in the suite's order.

    An edit has its first input's size and is asked as `edit`; one with several inputs, of which
    KRIS has some, is asked as a task with references. A prompt's pictures differ by their noise,
    which follows from their names.

    Args:
      folder: of the suite's own files.
      split: there is one.
      suite: of `evals.judged`.
      size: (width, height) of what its judge wants; None is the input's, or the model's own.

    Raises:
      BenchmarkError: files that are not in the suite's format.
    """
    del split
    try:
        prompts = suite.read_prompts(folder)
    except ReportError as error:
        raise BenchmarkError(str(error)) from None
    return [item for prompt in prompts for item in _items(prompt, suite, size)]


def _items(prompt: Prompt, suite: Suite, size: Size) -> list[Item]:
    pictures = [Picture(*given) for given in prompt.given]
    fields: dict[str, Any] = {"text": {"caption": prompt.text}}
    if suite.task == "edit":
        size = size or pictures[0].open().size
    if suite.task == "edit" and len(pictures) == 1:
        fields = {"given": {"source": pictures[0]}, "text": {"instruction": prompt.text}}
    elif pictures:
        fields = reference_fields(prompt.text, pictures)
        fields |= {"tasks": TASKS} if suite.task == "edit" else {}
    return [
        Item(id=name, size=size, truth={"prompt": prompt}, **fields)
        for name in picture_names(prompt)
    ]


def reference_fields(words: str, references: Sequence[Picture]) -> dict[str, Any]:
    """`given` and `text` of an item for every task of `subject_driven.TASKS`, without names.

    The words say `the first image`, or nothing, where a task would name what a picture shows; so
    prompts begin with the pictures.
    """
    count = len(references)
    return {
        "given": {"assets": list(references), "views": list(references)},
        "text": {
            "caption": words,
            "references": name_references([THING] * count, first=1),
            "slots": f"{' '.join([PLACEHOLDER] * count)}: {words}",
            "captions": " ".join(
                [f"[[img0]] {words}", *(f"[[img{number}]]" for number in range(1, 1 + count))]
            ),
            "name": " and ".join([THING] * count),
        },
    }


def export_made(suite: Suite, items: Sequence[Item], *, store: Store) -> int:
    """Exports this process's prompts: those that are whole, and new or changed.

    A prompt that lacks a picture is not exported, and what an earlier run exported of it goes.

    Args:
      suite: of the items.
      items: of all prompts.
      store: their predictions; `export` and `exported` lie beside them.

    Returns:
      How many of this process's prompts are exported now.
    """
    by_prompt: dict[str, list[Item]] = {}
    for item in items:
        by_prompt.setdefault(item.truth["prompt"].id, []).append(item)
    folder = store.folder / EXPORT
    digests: dict[str, str] = {}  # of those that are new or changed
    whole: dict[str, list[Item]] = {}
    pieces = own_pieces(list(by_prompt.values()))
    made = own_predictions([item for own in pieces for item in own], store=store, name=suite.name)
    for own in pieces:
        prompt = own[0].truth["prompt"]
        _check(suite, prompt, folder)
        is_whole = len(own) == prompt.count and not any(item.id in made.missing for item in own)
        contents = [store.content(item) for item in own]
        digest = hashlib.sha256(json.dumps(contents).encode()).hexdigest() if is_whole else ""
        if _exported(store, prompt) != digest:
            for name in suite.files(prompt):
                (folder / name).unlink(missing_ok=True)
            _note(store, prompt).unlink(missing_ok=True)
            digests[prompt.id] = digest
        if is_whole:
            whole[prompt.id] = own

    def pictures(prompt: Prompt) -> list[Image.Image]:
        return [made(item) for item in whole[prompt.id]]

    try:
        prompts = [own[0].truth["prompt"] for own in whole.values()]
        export(suite, prompts, folder=folder, pictures=pictures)
    except (ReportError, MissingError) as error:
        raise BenchmarkError(str(error)) from None
    for prompt in prompts:
        if prompt.id in digests:
            write_json(_note(store, prompt), {"pictures": digests[prompt.id]})
    return len(prompts)


def _check(suite: Suite, prompt: Prompt, folder: epath.Path) -> None:
    try:
        check_files(suite, [prompt], folder=folder)
    except ReportError as error:
        raise BenchmarkError(str(error)) from None


def _note(store: Store, prompt: Prompt) -> epath.Path:
    return store.folder / "exported" / f"{prompt.id}.json"


def _exported(store: Store, prompt: Prompt) -> str:
    """The digest of the pictures that were exported, "" where none is known."""
    path = _note(store, prompt)
    try:
        return str(json.loads(path.read_text()).get("pictures", "")) if path.exists() else ""
    except ValueError:  # torn: as if it were not there
        return ""


# -------------------------------------------------------------------------------------- benchmarks


def _benchmark(name: str, *, data: Data, size: Size = None, **fields: Any) -> Benchmark:
    suite = get_suite(name)
    counts: Mapping[str, int] = fields.pop("counts", None) or (
        {} if suite.num_prompts is None else {"test": suite.num_prompts}
    )
    return Benchmark(
        name=name,
        title=suite.title,
        tasks=TASKS if suite.task == "customize" else (suite.task,),
        counts=counts,
        read=functools.partial(read_prompts, suite=suite, size=size),
        suite=suite,
        data=data,
        **fields,
    )


GENEVAL = _benchmark(
    "geneval",
    tables=("OneDiffusion, GenEval", "UniVG, GenEval"),
    counts={"test": 553 * 4},
    description="553 prompts of six tasks, four pictures each, which a detector checks.",
    data=Data(
        where="github.com/djghosh13/geneval",
        licence="MIT",
        size="553 prompts",
        layout="evaluation_metadata.jsonl (of its prompts/)",
    ),
)

COMPBENCH = _benchmark(
    "t2i_compbench",
    size=(512, 512),  # the spatial scores measure in pixels of that size
    tables=("UniVG, T2I-CompBench",),
    description="300 prompts of each of eight categories, ten pictures each of 512 x 512 pixels.",
    data=Data(
        where="github.com/Karine-Huang/T2I-CompBench",
        licence="MIT",
        size="2,400 prompts",
        layout="<category>_val.txt (of its examples/dataset/)",
    ),
)

DPG = _benchmark(
    "dpg_bench",
    tables=(),
    description="Dense prompts, four pictures each, which a model is asked questions about.",
    data=Data(
        where="github.com/TencentQQGYLab/ELLA",
        licence="Apache 2.0",
        size="1,065 prompts",
        layout="dpg_bench/prompts/<id>.txt, dpg_bench/dpg_bench.csv",
    ),
)

GEDIT = _benchmark(
    "gedit_bench",
    tables=(),
    description="606 edits of eleven kinds in English and Chinese, at their input's size.",
    data=Data(
        where="huggingface.co/datasets/stepfun-ai/GEdit-Bench",
        licence="MIT",
        size="606 pictures",
        layout="*train*.parquet (its conversion to parquet)",
    ),
)

IMGEDIT = _benchmark(
    "imgedit_bench",
    tables=(),
    description="737 edits of nine types, at their input's size.",
    data=Data(
        where="huggingface.co/datasets/sysuyy/ImgEdit (Benchmark.tar)",
        licence="see its page",
        size="737 edits",
        layout="basic_edit.json, pictures beside it (of its singleturn part)",
    ),
)

KRIS = _benchmark(
    "kris_bench",
    tables=(),
    description=(
        "1267 edits that need knowledge, in 22 categories, at their input's size. Those with "
        "several inputs are asked as a task with references."
    ),
    data=Data(
        where="github.com/mercurystraw/Kris_Bench",
        licence="see its page",
        size="1,267 edits",
        layout="KRIS_Bench/: <category>/annotation.json, pictures beside it",
    ),
)

OMNICONTEXT = _benchmark(
    "omnicontext",
    size=(1024, 1024),
    tables=(),
    description=(
        "400 prompts with one to three references, in eight tasks, of 1024 x 1024 pixels. The "
        "references come without names, before the words."
    ),
    data=Data(
        where="huggingface.co/datasets/OmniGen2/OmniContext",
        licence="see its page",
        size="400 prompts",
        layout="*train*.parquet",
    ),
)

JUDGED = (GENEVAL, COMPBENCH, DPG, GEDIT, IMGEDIT, KRIS, OMNICONTEXT)
