"""Subject-driven generation: DreamBench, and what it shares with other suites of subjects."""

import hashlib
import re
from collections.abc import Callable, Sequence

import numpy as np
from etils import epath

from data_pipelines.objects import name_references
from unidiff_jax.evals import similarity
from unidiff_jax.evals.benchmarks.base import (
    Benchmark,
    BenchmarkError,
    Data,
    Item,
    Picture,
    Predictions,
    Score,
    first_folder,
    picture_file,
    pictures_in,
    read_lines,
)
from unidiff_jax.evals.benchmarks.scoring import Tools, identity, split, substitute
from unidiff_jax.tasks import PLACEHOLDER

SAMPLES = 4
"""Pictures of a prompt."""

LIVE = ("cat", "dog")
"""Classes that DreamBench asks the prompts of live subjects for."""

ENCODERS = ("clip-b32", "clip-l14", "dino-s16")

TASKS = ("interleave", "customize", "personalize", "subject")
"""Which of them depends on how a model was trained to be shown a thing."""

Reference = Callable[[Item], Sequence[Picture]]


def subject_fields(
    words: str, names: Sequence[str], references: Sequence[Picture], *, slots: str = ""
) -> dict:
    """`given` and `text` of an item for every task of `TASKS`.

    Args:
      words: of the prompt, with the names in it.
      names: of the subjects.
      references: one picture of each.
      slots: the prompt with `PLACEHOLDER` for each picture; empty puts it where a name first stands
        with its article, as training data do (`data_pipelines.interleaved`).
    """
    for name in () if slots else names:
        named = rf"\b(?:(?:a|an|the)\s+)?{re.escape(name)}\b"
        slots = re.sub(named, PLACEHOLDER, slots or words, count=1)
    views = " ".join([f"[[img0]] {words}", *(f"[[img{i}]]" for i in range(1, 1 + len(names)))])
    return {
        "given": {"assets": list(references), "views": list(references)},
        "text": {
            "caption": words,
            "references": name_references(names, first=1),
            "slots": slots,
            "captions": views,
            "name": " and ".join(names),
        },
    }


def score_subjects(
    items: Sequence[Item],
    made: Predictions,
    tools: Tools,
    *,
    protocol: str,
    references: Callable[[Item], Sequence[Sequence[Picture]]],
    grouped: bool,
    deviations: Sequence[str] = (),
) -> list[Score]:
    """CLIP-T, CLIP-I and DINO, and UNIMO-G's average of the three.

    Args:
      items: with the truth `prompt`.
      made: their predictions.
      tools: extractors.
      protocol: of the scores.
      references: the pictures of each of an item's subjects.
      grouped: whether the mean is over groups of their means.
      deviations: of every score.
    """
    there, counts = split(items, made)
    if not there:
        return []
    found: dict[tuple[str, str], Score] = {}
    for kind in ENCODERS:
        extractor = tools.get(kind)
        if extractor is None:
            continue
        outputs = tools.made_features(kind, there, made)
        columns = {"dino" if kind.startswith("dino") else "clip_i": (_to_subjects, "gt")}
        if kind.startswith("clip"):
            columns["clip_t"] = (_to_text, "text")
        for metric, (column, reference) in columns.items():
            values, ids = column(kind, there, outputs, tools, references), [i.id for i in there]
            if grouped:
                values, ids = _by_group(values, there), []
            found[metric, kind] = Score(
                metric=metric,
                values=values,
                ids=tuple(ids),
                protocol=protocol,
                reference=reference,
                encoder=identity(extractor),
                deviations=(*deviations, *substitute(extractor)),
                **counts,
            )
    for kind in ("clip-b32", "clip-l14"):
        parts = [
            found.get(key) for key in (("dino", "dino-s16"), ("clip_i", kind), ("clip_t", kind))
        ]
        if all(part is not None for part in parts):
            first, clip = parts[0], parts[1]
            found["average", kind] = Score(
                metric="average",
                values=np.mean([part.values for part in parts], axis=0),
                ids=first.ids,
                protocol=protocol,
                encoder={
                    "name": f"{kind} and dino-s16",
                    "sha256": _both(clip.encoder["sha256"], first.encoder["sha256"]),
                    "preprocess": f"{clip.encoder['preprocess']}, {first.encoder['preprocess']}",
                },
                deviations=tuple(dict.fromkeys(d for part in parts for d in part.deviations)),
                **counts,
            )
    return list(found.values())


def _both(*digests: str) -> str:
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _to_subjects(kind, items, outputs, tools: Tools, references) -> np.ndarray:
    """Mean over an item's subjects of the mean cosine with each picture of them."""
    values = []
    for item, output in zip(items, outputs, strict=True):
        means = [
            similarity.mean_over_references(
                output[None], references=tools.features(kind, pictures)
            )[0]
            for pictures in references(item)
        ]
        values.append(np.mean(means))
    return np.asarray(values, np.float64)


def _to_text(kind, items, outputs, tools: Tools, references) -> np.ndarray:
    del references
    text = tools.text_features(kind, [item.truth["prompt"] for item in items])
    return similarity.clip_text(outputs, text=text, floor=0.0)


def _by_group(values: np.ndarray, items: Sequence[Item]) -> np.ndarray:
    groups = list(dict.fromkeys(item.group for item in items))
    places = np.array([groups.index(item.group) for item in items])
    return np.array([values[places == place].mean() for place in range(len(groups))])


# -------------------------------------------------------------------------------------- DreamBench


def read_dreambench(folder: epath.Path, split_name: str) -> list[Item]:
    """`prompts_and_classes.txt` and a folder of pictures a subject, as `google/dreambooth` has.

    The first picture of a subject is what the model is shown. Prompts say the class alone, without
    a token for the subject.

    Raises:
      BenchmarkError: a file is missing, or has no classes or not both lists of prompts.
    """
    del split_name
    root = first_folder(folder, "", "dataset", holding="prompts_and_classes.txt")
    classes, prompts = parse_prompts(read_lines(root / "prompts_and_classes.txt"))
    items = []
    for subject, name in classes.items():
        pictures = [picture_file(root, f"{subject}/{file}") for file in pictures_in(root / subject)]
        for number, template in enumerate(prompts[name in LIVE]):
            words = template.format(name)
            for seed in range(SAMPLES):
                items.append(
                    Item(
                        id=f"{subject}/{number:02d}_{seed}",
                        seed=seed,
                        group=subject,
                        part="live" if name in LIVE else "object",
                        truth={"prompt": words, "references": pictures, "input": pictures[0]},
                        **subject_fields(words, [name], pictures[:1]),
                    )
                )
    return items


def parse_prompts(lines: Sequence[str]) -> tuple[dict[str, str], tuple[list[str], list[str]]]:
    """Class by subject, and the templates of objects and of live subjects, `{}` for the class."""
    classes: dict[str, str] = {}
    prompts: dict[str, list[str]] = {}
    section = ""
    for line in lines:
        if line in ("Classes", "Object Prompts", "Live Subject Prompts"):
            section = line
        elif section == "Classes" and "," in line and line != "subject_name,class":
            subject, _, name = line.partition(",")
            classes[subject.strip()] = name.strip()
        elif section.endswith("Prompts") and (found := re.match(r"'(.*)'\.format\(", line)):
            template = found[1].replace("{0} {1}", "{}")
            prompts.setdefault(section, []).append(template)
    both = tuple(prompts.get(name, []) for name in ("Object Prompts", "Live Subject Prompts"))
    if not classes or not all(both):
        raise BenchmarkError(
            "prompts_and_classes.txt must have classes, object prompts and live subject prompts"
        )
    return classes, both


def _score_dreambench(items: Sequence[Item], made: Predictions, tools: Tools) -> list[Score]:
    every = score_subjects(
        items,
        made,
        tools,
        protocol="",
        references=lambda item: [item.truth["references"]],
        grouped=True,
    )
    several = [item for item in items if len(item.truth["references"]) > 1]
    return every + [
        score
        for score in score_subjects(
            several,
            made,
            tools,
            protocol="other_references",
            references=lambda item: [item.truth["references"][1:]],
            grouped=True,
            deviations=("Without the picture that the model was shown.",),
        )
        if score.metric in ("clip_i", "dino")
    ]


DREAMBENCH = Benchmark(
    name="dreambench",
    title="DreamBench",
    tables=(
        "UniReal Table 3",
        "UniReal Table 4",
        "UNIMO-G, DreamBench",
        "OneDiffusion, DreamBench",
    ),
    tasks=TASKS,
    counts={"test": 3000},
    read=read_dreambench,
    score=_score_dreambench,
    extractors=ENCODERS,
    description=(
        "30 subjects, 25 prompts, 4 pictures each. CLIP-I and DINO: mean cosine with every picture "
        "of the subject, the one that the model was shown among them; CLIP-T: cosine with the "
        "prompt, not below 0. Means over subjects of their means, and over the live ones and the "
        "objects."
    ),
    data=Data(
        where="github.com/google/dreambooth",
        licence="CC BY 4.0",
        size="30 subjects, 4 to 6 pictures each",
        layout="dataset/prompts_and_classes.txt, dataset/<subject>/00.jpg",
    ),
    rows={"copy input": lambda item: item.truth["input"].open()},
    shuffles=True,
    samples="clip_t",
)
