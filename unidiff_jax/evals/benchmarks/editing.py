"""Instruction editing: Emu Edit's test set, MagicBrush, PIE-Bench.

The columns of the papers' tables are not one metric. MagicBrush's script compares an output with
the true result, UniReal compares it with the input; Emu Edit's paper names no CLIP, and B/32 and
L/14 differ by .05; pairs with equal captions have no direction of the text. So every combination is
a score of its own, and a copy of the input stands beside each.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from data_pipelines.sources.base import SampleError, SourceError
from data_pipelines.sources.parquet import ParquetTable
from unidiff_jax.evals import image_distance, similarity
from unidiff_jax.evals.benchmarks.base import (
    Benchmark,
    BenchmarkError,
    Data,
    Earlier,
    Item,
    Picture,
    Predictions,
    Score,
    data_file,
    fields_of,
    first_folder,
    picture_file,
    read_json,
)
from unidiff_jax.evals.benchmarks.scoring import Tools, array, identity, split, substitute
from unidiff_jax.sample.images import decode_picture

CLIPS, DINO = ("clip-b32", "clip-l14"), "dino-s16"
CAPTIONS = ("all", "captions differ")

# ------------------------------------------------------------------------------------------ scores


def score_edits(
    items: Sequence[Item],
    made: Predictions,
    tools: Tools,
    *,
    protocol: str = "",
    references: Sequence[str] = ("input",),
    official: Sequence[tuple[str, str, str]] = (),
    other: str = "",
) -> list[Score]:
    """CLIP_dir, CLIP-I (CLIP_im), CLIP-T (CLIP_out), DINO, L1 and L2 of edits.

    Args:
      items: with the truths `input`, `input_caption` and `output_caption`, and `target` for the
        reference gt.
      made: their predictions.
      tools: extractors.
      protocol: of the scores.
      references: what outputs are compared with.
      official: (metric, reference, encoder) of the suite's own script; "" for no encoder.
      other: the deviation of every other score.
    """
    there, counts = split(items, made)
    if not there:
        return []
    found: list[Score] = []

    def add(metric: str, values: np.ndarray, of: Sequence[Item], **how) -> None:
        encoder = how.pop("extractor", None)
        name = encoder.identity["name"] if encoder else ""
        is_official = (metric, how.get("reference"), name) in official
        is_official &= how.get("captions", "all") == "all"
        deviations = (() if is_official or not other else (other,)) + (
            substitute(encoder) if encoder else ()
        )
        wanted = how.pop("wanted", counts["items"])
        found.append(
            Score(
                metric=metric,
                values=values,
                ids=tuple(item.id for item in of),
                higher_is_better=metric not in ("l1", "l2"),
                protocol=protocol,
                encoder=identity(encoder) if encoder else None,
                items=wanted,
                n_failed=len(wanted) - len(of),
                deviations=deviations,
                **how,
            )
        )

    captioned = [item for item in there if item.truth["output_caption"]]
    for kind in CLIPS:
        clip = tools.get(kind)
        if clip is None:
            continue
        outputs = tools.made_features(kind, there, made)
        for captions in CAPTIONS:
            chosen = [item for item in captioned if captions == "all" or _captions_differ(item)]
            wanted = tuple(i.id for i in items if captions == "all" or _captions_differ(i))
            if not chosen:
                continue
            rows = [there.index(item) for item in chosen]
            text = tools.text_features(kind, [item.truth["output_caption"] for item in chosen])
            add(
                "clip_t",
                similarity.clip_text(outputs[rows], text=text),
                chosen,
                reference="text",
                captions=captions,
                extractor=clip,
                wanted=wanted,
            )
            both = [item for item in chosen if item.truth["input_caption"]]
            if both:
                rows = [there.index(item) for item in both]
                add(
                    "clip_dir",
                    similarity.clip_direction(
                        outputs[rows],
                        source=tools.features(kind, [item.truth["input"] for item in both]),
                        source_text=tools.text_features(
                            kind, [item.truth["input_caption"] for item in both]
                        ),
                        output_text=tools.text_features(
                            kind, [item.truth["output_caption"] for item in both]
                        ),
                    ),
                    both,
                    reference="text",
                    captions=captions,
                    extractor=clip,
                    wanted=wanted,
                )
        for reference in references:
            like = tools.features(kind, [_reference(item, reference) for item in there])
            values = similarity.clip_image(outputs, reference=like)
            add("clip_i", values, there, reference=reference, extractor=clip)
    dino = tools.get(DINO)
    if dino is not None:
        outputs = tools.made_features(DINO, there, made)
        for reference in references:
            like = tools.features(DINO, [_reference(item, reference) for item in there])
            values = similarity.dino(outputs, reference=like)
            add("dino", values, there, reference=reference, extractor=dino)
    for reference in references:
        pairs = [_pair(made(item), _reference(item, reference)) for item in there]
        for metric, distance in (("l1", image_distance.l1), ("l2", image_distance.l2)):
            values = np.concatenate([distance(output, target=target) for output, target in pairs])
            add(metric, values, there, reference=reference)
    return found


def _captions_differ(item: Item) -> bool:
    truth = item.truth
    return bool(
        similarity.captions_differ([truth["input_caption"]], output=[truth["output_caption"]])[0]
    )


def _reference(item: Item, reference: str) -> Picture:
    return item.truth["target" if reference == "gt" else "input"]


def _pair(output: Image.Image, reference: Picture) -> tuple[np.ndarray, np.ndarray]:
    target = reference.open()
    return array(image_distance.match_size(output, reference=target)), array(target)


# --------------------------------------------------------------------------------------- Emu Edit

EMU_COLUMNS = ("instruction", "image", "task", "idx", "input_caption", "output_caption")


def read_emu_edit(folder: epath.Path, split: str) -> list[Item]:
    """`data/<split>-*.parquet` of the Hugging Face data set `facebook/emu_edit_test_set`.

    Raises:
      BenchmarkError: no such file, or other columns, such as those of the set of generations.
    """
    place = folder / "data" if (folder / "data").is_dir() else folder
    try:
        table = ParquetTable(f"{place}/{split}-*.parquet")
        missing = [name for name in EMU_COLUMNS if name not in table.columns]
        if missing:
            raise BenchmarkError(
                f"{place}/{split}-*.parquet has no column {missing[0]!r}; this reads "
                "facebook/emu_edit_test_set, not the set of generations, whose splits have each "
                "other's names"
            )
        words = [name for name in EMU_COLUMNS if name != "image"]
        items = []
        for index, row in enumerate([table.row(index, words) for index in range(len(table))]):
            source = _emu_picture(table, index, name=f"{split}/{row['idx']}")
            items.append(
                Item(
                    id=f"{split}/{row['task']}_{row['idx']}",
                    given={"source": source},
                    text={"instruction": row["instruction"]},
                    size=source.open().size,
                    part=row["task"],
                    truth={
                        "input": source,
                        "input_caption": row["input_caption"] or "",
                        "output_caption": row["output_caption"] or "",
                    },
                )
            )
    except (SourceError, SampleError) as error:
        raise BenchmarkError(str(error)) from None
    return items


def _emu_picture(table: ParquetTable, index: int, *, name: str) -> Picture:
    """A picture that stays in its file until it is opened."""
    return Picture(name, lambda: decode_picture(table.row(index, ("image",))["image"], name=name))


def _score_emu_edit(items: Sequence[Item], made: Predictions, tools: Tools) -> list[Score]:
    return score_edits(
        items,
        made,
        tools,
        other="The paper names no encoder and has released no code for its scores.",
    )


EMU_EDIT = Benchmark(
    name="emu_edit",
    title="Emu Edit test set",
    tables=("UniReal Table 2", "UniVG (CLIP-T)"),
    tasks=("edit",),
    splits=("test", "validation"),
    counts={"test": 3589, "validation": 2022},
    read=read_emu_edit,
    score=_score_emu_edit,
    extractors=(*CLIPS, DINO),
    description=(
        "Each input is edited by its instruction. There is no true result: outputs are compared "
        "with the input, and with the caption of the result. Means over items, and over those of "
        "each task."
    ),
    data=Data(
        where="huggingface.co/datasets/facebook/emu_edit_test_set",
        licence="CC BY-NC 4.0",
        size="3,589 and 2,022 pictures",
        layout="data/test-*.parquet, data/validation-*.parquet",
    ),
    rows={"copy input": lambda item: item.truth["input"].open()},
    shuffles=True,
)


# ------------------------------------------------------------------------------------- MagicBrush


def read_magicbrush(folder: epath.Path, split: str) -> list[Item]:
    """The unpacked test archive: `edit_sessions.json`, `local_descriptions.json`, `images/<id>/`.

    A session of k turns gives the first turn, the later ones from the true picture before
    (`inde`), and the later ones from the model's own (`iter`). Predictions have the official
    script's names.

    Raises:
      BenchmarkError: a file or key is missing, or a turn has another name than the script knows.
    """
    root = first_folder(folder, "", split, holding="edit_sessions.json")
    sessions = read_json(root / "edit_sessions.json")
    named = ("local_descriptions.json", "local_captions.json", "global_descriptions.json")
    captions_file = next((name for name in named if (root / name).exists()), None)
    if captions_file is None:
        raise BenchmarkError(f"{root} has none of {', '.join(named)}: the captions of the pictures")
    captions = read_json(root / captions_file)
    items: list[Item] = []
    for session, turns in sessions.items():
        items += _session_items(root / "images" / session, turns, captions.get(session, {}))
    return items


def _session_items(
    folder: epath.Path, turns: Sequence[Any], captions: Mapping[str, str]
) -> list[Item]:
    session = folder.name
    first, items = "", []
    for number, turn in enumerate(turns, start=1):
        where = f"{session} turn {number}"
        before, after, words = fields_of(turn, "input", "output", "instruction", where=where)
        if not re.fullmatch(rf".*-output{number}\.(png|jpg)", after):
            raise BenchmarkError(f"{where}: {after!r} should end in -output{number}.png")
        first = first or before
        source, is_last = picture_file(folder, before), number == len(turns)
        common = {
            "text": {"instruction": words},
            "size": source.open().size,
            "chain": session,
        }
        truth = {
            "input": source,
            "target": picture_file(folder, after),
            "input_caption": captions.get(before, ""),
            "output_caption": captions.get(after, ""),
        }
        own = ("single_turn", "multi_turn") if is_last and number == 1 else ("single_turn",)
        items.append(
            Item(
                id=f"{session}/{session}_{'1' if number == 1 else f'inde_{number}'}",
                given={"source": source},
                truth=truth | {"protocols": own},
                **common,
            )
        )
        if number == 1:
            continue
        chained = truth | {
            "input": picture_file(folder, first),
            "input_caption": captions.get(first, ""),
            "protocols": ("multi_turn",) if is_last else (),
        }
        items.append(
            Item(
                id=f"{session}/{session}_iter_{number}",
                given={
                    "source": Earlier(
                        f"{session}/{session}_{'1' if number == 2 else f'iter_{number - 1}'}"
                    )
                },
                truth=chained,
                **common,
            )
        )
    return items


_MAGICBRUSH = (
    *((metric, "gt", "") for metric in ("l1", "l2")),
    ("clip_i", "gt", "clip-b32"),
    ("clip_t", "text", "clip-b32"),
    ("dino", "gt", DINO),
)


def _score_magicbrush(items: Sequence[Item], made: Predictions, tools: Tools) -> list[Score]:
    found = []
    for protocol in ("single_turn", "multi_turn"):
        found += score_edits(
            [item for item in items if protocol in item.truth["protocols"]],
            made,
            tools,
            protocol=protocol,
            references=("gt", "input"),
            official=_MAGICBRUSH,
            other=(
                "MagicBrush's script compares with the true result, has CLIP B/32, every caption "
                "and no direction; UniReal compares with the input."
            ),
        )
    return found


MAGICBRUSH = Benchmark(
    name="magicbrush",
    title="MagicBrush",
    tables=("UniReal Table 2", "UniReal Table 4", "UniVG (CLIP-T, CLIP-I)"),
    tasks=("edit",),
    splits=("test", "dev"),
    counts={"test": 1053 + 518},  # turns, and the later ones again in chains
    read=read_magicbrush,
    score=_score_magicbrush,
    extractors=(*CLIPS, DINO),
    description=(
        "Single turn: each turn starts from the true picture before it. Multi turn: the last turn "
        "of each session, from the model's own pictures. Means over items."
    ),
    data=Data(
        where="github.com/OSU-NLP-Group/MagicBrush (test archive, password MagicBrush)",
        licence="CC BY 4.0; the test set may not be put online again",
        size="535 sessions, 1,053 turns",
        layout="edit_sessions.json, local_descriptions.json, images/<id>/<id>-{input,output1}.png",
    ),
    rows={
        "copy input": lambda item: item.truth["input"].open(),
        "true result": lambda item: item.truth["target"].open(),
    },
    shuffles=True,
)


# -------------------------------------------------------------------------------------- PIE-Bench

PIE_SIDE = 512

PIE_DISTANCES = (
    ("lpips", "lpips-squeeze", "unedited"),
    ("lpips_edited", "lpips-squeeze", "edited"),
    ("lpips_whole", "lpips-squeeze", "whole"),
    ("lpips", "lpips-alex", "unedited"),
    ("lpips", "lpips-vgg", "unedited"),
    ("structure_distance", "dino-b8", "whole"),
    ("structure_distance_unedited", "dino-b8", "unedited"),
    ("structure_distance_edited", "dino-b8", "edited"),
)
"""Metric, extractor, and the part of the picture that is not black. LPIPS is published of what is
not edited, the structure distance of the whole."""


def decode_runs(runs: Sequence[int], *, side: int = PIE_SIDE) -> np.ndarray:
    """A mask (side, side), bool, of pairs (start, length) over its rows.

    The frame of one pixel is always inside, as in the official code.

    Raises:
      BenchmarkError: an odd number of entries, or a run that begins outside.
    """
    if len(runs) % 2 or any(start < 0 or start >= side * side for start in runs[::2]):
        raise BenchmarkError("a mask must be pairs of start and length inside of the picture")
    flat = np.zeros(side * side, bool)
    for start, length in zip(runs[::2], runs[1::2], strict=True):
        flat[start : start + length] = True
    mask = flat.reshape(side, side)
    mask[[0, -1]] = True
    mask[:, [0, -1]] = True
    return mask


def read_pie_bench(folder: epath.Path, split: str) -> list[Item]:
    """`mapping_file.json` and `annotation_images/`.

    Raises:
      BenchmarkError: a file or key is missing.
    """
    del split
    path = folder / "mapping_file.json"
    items = []
    for key, record in read_json(path).items():
        name, before, after, instruction, runs = fields_of(
            record,
            "image_path",
            "original_prompt",
            "editing_prompt",
            "editing_instruction",
            "mask",
            where=f"{path}: {key}",
        )
        data_file(folder, name)
        source = picture_file(folder / "annotation_images", name)
        items.append(
            Item(
                id=str(epath.Path(name).with_suffix("")),
                given={"source": source},
                text={"instruction": instruction},
                size=(PIE_SIDE, PIE_SIDE),
                truth={
                    "input": source,
                    "input_caption": before.replace("[", "").replace("]", ""),
                    "output_caption": after.replace("[", "").replace("]", ""),
                    "runs": list(runs),
                },
            )
        )
    return items


def _score_pie_bench(items: Sequence[Item], made: Predictions, tools: Tools) -> list[Score]:
    there, counts = split(items, made)
    if not there:
        return []
    networks = {kind: tools.get(kind) for _, kind, _ in PIE_DISTANCES}
    columns: dict[tuple[str, str], list[float]] = {}
    for item in there:
        source = item.truth["input"].open()
        kept = ~decode_runs(item.truth["runs"])[None]
        output = image_distance.match_size(made(item), reference=source)
        masks = {"unedited": kept, "edited": ~kept, "whole": np.ones_like(kept)}
        parts = {
            name: [image_distance.zero_outside(array(x), mask=mask) for x in (output, source)]
            for name, mask in masks.items()
        }
        pair = parts["unedited"]
        row = {
            ("psnr", ""): image_distance.psnr(pair[0], target=pair[1])[0],
            ("mse", ""): image_distance.l2(pair[0], target=pair[1])[0],
            ("ssim", ""): image_distance.ssim(pair[0], target=pair[1], window="gaussian")[0],
        }
        if not kept.any():
            row = dict.fromkeys(row, np.nan)
        # byte pictures for networks: black outside is exact in bytes
        black = {name: [_bytes(x) for x in pair] for name, pair in parts.items()}
        for metric, kind, part in PIE_DISTANCES:
            network, (first, second) = networks[kind], black[part]
            if network is not None:
                value = network.distance([first], [second])[0] if masks[part].any() else np.nan
                row[metric, kind] = value
        for name, value in row.items():
            columns.setdefault(name, []).append(float(value))
    ids = np.array([item.id for item in there])
    found = []

    def add(metric: str, values, *, extractor=None, own: tuple[str, ...] = (), **how) -> None:
        values = np.asarray(values, np.float64)
        defined = np.isfinite(values)
        undefined = set(ids[~defined])
        if not defined.any():
            return
        found.append(
            Score(
                metric=metric,
                values=values[defined],
                ids=tuple(ids[defined].tolist()),
                encoder=identity(extractor) if extractor else None,
                items=tuple(key for key in counts["items"] if key not in undefined),
                n_failed=counts["n_failed"],
                deviations=own + (substitute(extractor) if extractor else ()),
                **how,
            )
        )

    for metric in ("psnr", "ssim", "mse"):
        add(metric, columns[metric, ""], reference="input", higher_is_better=metric != "mse")
    for metric, kind, _ in PIE_DISTANCES:
        if (metric, kind) in columns:
            other = kind in ("lpips-alex", "lpips-vgg")
            add(
                metric,
                columns[metric, kind],
                reference="input",
                higher_is_better=False,
                extractor=networks[kind],
                own=("The official code has LPIPS of SqueezeNet.",) if other else (),
            )
    for kind in CLIPS:
        clip = tools.get(kind)
        if clip is None:
            continue
        own = () if kind == "clip-l14" else ("The official code has CLIP L/14.",)
        text = tools.text_features(kind, [item.truth["output_caption"] for item in there])
        for part, change in (("whole", lambda x, mask: x), ("edited", _black_outside)):
            cut = Predictions(
                f"{made.name}/{part}",
                lambda item, change=change: change(
                    _fit(made(item)), decode_runs(item.truth["runs"])
                ),
            )
            values = similarity.clip_text(
                tools.made_features(kind, there, cut), text=text, floor=0.0
            )
            add(f"clip_t_{part}", values, reference="text", extractor=clip, own=own)
    return found


def _fit(picture: Image.Image) -> Image.Image:
    return picture if picture.size == (PIE_SIDE, PIE_SIDE) else picture.resize((PIE_SIDE,) * 2)


def _bytes(values: np.ndarray) -> Image.Image:
    """A batch of one with values in [0, 1] as a picture."""
    return Image.fromarray(np.rint(values[0] * 255).astype(np.uint8))


def _black_outside(picture: Image.Image, mask: np.ndarray) -> Image.Image:
    return Image.fromarray(np.asarray(picture) * mask[..., None].astype(np.uint8))


PIE_BENCH = Benchmark(
    name="pie_bench",
    title="PIE-Bench",
    tables=("OneDiffusion, editing",),
    tasks=("edit",),
    counts={"test": 700},
    read=read_pie_bench,
    score=_score_pie_bench,
    extractors=(*dict.fromkeys(kind for _, kind, _ in PIE_DISTANCES), *CLIPS),
    description=(
        "Outside the mask of the edit, PSNR, SSIM, MSE and LPIPS to the input, of pictures that "
        "are black inside it; distance of structure to the input, of whole pictures; both "
        "distances also of the other parts; CLIP-T (not below 0) of the whole output, and of what "
        "is inside on black. Means over the pictures that have the part."
    ),
    data=Data(
        where="github.com/cure-lab/PnPInversion",
        licence="see its page",
        size="700 pictures of 512 x 512",
        layout="mapping_file.json, annotation_images/",
    ),
    rows={"copy input": lambda item: item.truth["input"].open()},
    samples="clip_t_edited",
)
