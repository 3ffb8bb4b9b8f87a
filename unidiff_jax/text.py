"""Sentencepiece tokenizer in the T5 folder layout.

A folder holds `spiece.model` and the small JSON files that Hugging Face reads beside it; ids are
the pieces' own, padding is 0, end of text is 1, unknown is 2. The miniature trains its 512 pieces
on its own captions; a released T5 folder loads the same way.

Prompts name frames: IMG1, IMG2, ... are the given ones and RES1, ... the generated ones (UniReal
section 3.1). A name is one token: a piece of its own, or one of T5's spare ids ("extra_ids").
"""

import io
import json
import re
from collections.abc import Iterable
from typing import NamedTuple

import sentencepiece

from unidiff_jax.paths import AnyPath, as_path, written_whole

PAD, END, UNKNOWN = 0, 1, 2
MAX_NAMES = 10
"""Prompts can name this many given frames and as many generated ones."""

FRAME_NAMES = {
    f"{kind}{n}": n + offset
    for kind, offset in (("IMG", 0), ("RES", MAX_NAMES))
    for n in range(1, MAX_NAMES + 1)
}
"""Words by which prompts call frames, and the number of each."""

_NAME = re.compile(r"\b((?:IMG|RES)\d+)\b")


class Encoded(NamedTuple):
    """Ids of a text, and of each the frame name that it says: n for IMGn, MAX_NAMES + n for RESn, 0
    for none.
    """

    ids: list[int]
    names: list[int]


class Tokenizer:
    """Text to ids.

    Example:
      >>> tokenizer = Tokenizer("runs/quickstart/tokenizer")
      >>> tokenizer.encode("[[depth2image]] a red cube")
    """

    def __init__(self, folder: AnyPath):
        """Loads a folder; raises FileNotFoundError when it holds no `spiece.model`."""
        path = as_path(folder) / "spiece.model"
        if not path.exists():
            raise FileNotFoundError(f"no tokenizer at {path}; a T5 folder holds spiece.model")
        self._folder = path.parent
        self._pieces = sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
        settings = self._folder / "tokenizer_config.json"
        spare = json.loads(settings.read_text()).get("extra_ids", 0) if settings.exists() else 0
        # the id of <extra_id_k> counts down from the end
        last = self._pieces.vocab_size() + spare - 1
        self._name_ids = {}
        for name, number in FRAME_NAMES.items():
            own = self._pieces.piece_to_id(name)
            if own != UNKNOWN:
                self._name_ids[name] = own
            elif number <= spare:
                self._name_ids[name] = last - (number - 1)

    def save(self, folder: AnyPath) -> None:
        """Copies the files of the folder that it was loaded from."""
        folder = as_path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for file in sorted(self._folder.iterdir()):
            if file.is_file() and file.suffix in (".json", ".model"):
                (folder / file.name).write_bytes(file.read_bytes())

    @property
    def vocab_size(self) -> int:
        return self._pieces.vocab_size()

    @property
    def names_frames(self) -> bool:
        """Whether every frame name is a token."""
        return len(self._name_ids) == len(FRAME_NAMES)

    def encode(self, text: str) -> list[int]:
        """Ids of a text, closed by `END`; the empty text is `[END]`."""
        return [*self._pieces.encode(text), END]

    def encode_named(self, text: str) -> Encoded:
        """As `encode`, with the frame names of the text as tokens of their own.

        Where the vocabulary has no place for them, they are words like others.
        """
        ids, names = [], []
        for part in _NAME.split(text):
            number = FRAME_NAMES.get(part, 0)
            known = number and part in self._name_ids
            found = [self._name_ids[part]] if known else self._pieces.encode(part)
            ids += found
            names += [number] * len(found)
        return Encoded([*ids, END], [*names, 0])

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; stops at nothing and skips padding."""
        return self._pieces.decode([int(i) for i in ids if i not in (PAD, END)])


def train_tokenizer(
    texts: Iterable[str],
    *,
    folder: AnyPath,
    vocab_size: int,
    words: Iterable[str] = (),
    extra_ids: int = 0,
) -> None:
    """Trains a unigram sentencepiece model and writes the folder.

    Args:
      texts: training sentences.
      folder: where to write.
      vocab_size: upper bound of the number of pieces; a small corpus may give fewer.
      words: kept whole, such as task tokens.
      extra_ids: spare ids behind the pieces, as T5's 100.
    """
    folder = as_path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        model_type="unigram",
        user_defined_symbols=list(words),
        pad_id=PAD,
        eos_id=END,
        unk_id=UNKNOWN,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    special = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    config = {"tokenizer_class": "T5Tokenizer", "extra_ids": extra_ids, **special}
    config["model_max_length"] = 512
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")
    with written_whole(folder / "spiece.model") as file:  # last: the folder is complete now
        file.write_bytes(model.getvalue())
