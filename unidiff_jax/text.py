"""Tokenizers in the folder layouts of Hugging Face: T5's sentencepiece and CLIP's byte pairs.

A T5 folder holds `spiece.model` and small JSON files beside it; ids are the pieces' own, padding is
0, end of text is 1, unknown is 2. The miniature trains its 512 pieces on its own captions; a
released T5 folder loads the same way. A CLIP folder holds `vocab.json` and `merges.txt`.

Prompts name frames: IMG1, IMG2, ... are the given ones and RES1, ... the generated ones (UniReal
section 3.1). A name is one token: a piece of its own, one of T5's spare ids ("extra_ids"), or
CLIP's start of text.
"""

import io
import json
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import sentencepiece
from etils import epath

from unidiff_jax.config import ConfigError
from unidiff_jax.paths import AnyPath, as_path, written_whole

PAD, END, UNKNOWN = 0, 1, 2
"""Ids of the T5 layout."""

_T5_FILE, _CLIP_FILES = "spiece.model", ("vocab.json", "merges.txt")
_FILES = (_T5_FILE, *_CLIP_FILES, "tokenizer.json", "tokenizer_config.json")
_FILES += ("special_tokens_map.json", "added_tokens.json")
_CLIP_START, _CLIP_END = "<|startoftext|>", "<|endoftext|>"

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
    """Text to ids, as the text encoder of the same folder reads them.

    Attributes:
      kind: of the text encoder, one of `text_encoder.KINDS`.
      end_id: closes every text.
    """

    kind: str
    end_id: int
    _folder: epath.Path
    _start: tuple[int, ...] = ()
    _name_ids: dict[str, int]

    def save(self, folder: AnyPath) -> None:
        """Copies the files of the folder that it was loaded from."""
        folder = as_path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for file in sorted(self._folder.iterdir()):
            if file.is_file() and file.name in _FILES:
                (folder / file.name).write_bytes(file.read_bytes())

    @property
    def vocab_size(self) -> int:
        """Number of pieces, without spare ids."""
        raise NotImplementedError

    @property
    def names_frames(self) -> bool:
        """Whether every frame name is a token."""
        return len(self._name_ids) == len(FRAME_NAMES)

    def encode(self, text: str) -> list[int]:
        """Ids of a text, closed by `end_id`; the empty text is the dropped caption."""
        return [*self._start, *self._pieces(text), self.end_id]

    def encode_named(self, text: str) -> Encoded:
        """As `encode`, with the frame names of the text as tokens of their own.

        Where the vocabulary has no place for them, they are words like others.
        """
        ids, names = [], []
        for part in _NAME.split(text):
            number = FRAME_NAMES.get(part, 0)
            known = number and part in self._name_ids
            found = [self._name_ids[part]] if known else self._pieces(part)
            ids += found
            names += [number] * len(found)
        return Encoded([*self._start, *ids, self.end_id], [0] * len(self._start) + [*names, 0])

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; stops at nothing and skips start, end and padding."""
        raise NotImplementedError

    def _pieces(self, text: str) -> list[int]:
        """Ids of a part of a text."""
        raise NotImplementedError


class T5Tokenizer(Tokenizer):
    """Sentencepiece, of a folder with `spiece.model`. The dropped caption is `[END]`."""

    kind = "t5"
    end_id = END

    def __init__(self, folder: AnyPath):
        self._folder = as_path(folder)
        model = (self._folder / _T5_FILE).read_bytes()
        self._model = sentencepiece.SentencePieceProcessor(model_proto=model)
        settings = self._folder / "tokenizer_config.json"
        spare = json.loads(settings.read_text()).get("extra_ids", 0) if settings.exists() else 0
        # the id of <extra_id_k> counts down from the end
        last = self._model.vocab_size() + spare - 1
        self._name_ids = {}
        for name, number in FRAME_NAMES.items():
            own = self._model.piece_to_id(name)
            if own != UNKNOWN:
                self._name_ids[name] = own
            elif number <= spare:
                self._name_ids[name] = last - (number - 1)

    @property
    def vocab_size(self) -> int:
        return self._model.vocab_size()

    def decode(self, ids: Iterable[int]) -> str:
        return self._model.decode([int(i) for i in ids if i not in (PAD, END)])

    def _pieces(self, text: str) -> list[int]:
        return self._model.encode(text)


class CLIPTokenizer(Tokenizer):
    """Byte pairs, of a folder with `vocab.json` and `merges.txt`. The dropped caption is the start
    and the end of text.

    The vocabulary has no spare ids: a frame name's id is the start of text's, whatever the name.
    Which one it is says `Encoded.names` alone, and the denoiser has to add it to the state there.
    """

    kind = "clip"

    def __init__(self, folder: AnyPath):
        import transformers  # takes seconds, which runs with a T5 need not wait for

        self._folder = as_path(folder)
        vocabulary = json.loads((self._folder / _CLIP_FILES[0]).read_text())
        lines = (self._folder / _CLIP_FILES[1]).read_text().splitlines()
        merges = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
        missing = [word for word in (_CLIP_START, _CLIP_END) if word not in vocabulary]
        if missing:
            raise ConfigError(f"{folder}/{_CLIP_FILES[0]} has no {' and no '.join(missing)}")
        # its annotation says texts, the package behind it takes pairs
        settings: dict[str, Any] = {"vocab": vocabulary, "merges": merges}
        self._model = transformers.CLIPTokenizer(**settings)
        start, self.end_id = vocabulary[_CLIP_START], vocabulary[_CLIP_END]
        self._start = (start,)
        self._name_ids = {name: start for name in FRAME_NAMES}

    @property
    def vocab_size(self) -> int:
        return len(self._model)

    def decode(self, ids: Iterable[int]) -> str:
        return str(self._model.decode([int(i) for i in ids], skip_special_tokens=True))

    def _pieces(self, text: str) -> list[int]:
        return self._model.encode(text, add_special_tokens=False)


def holds_tokenizer(folder: AnyPath) -> bool:
    """Whether `load_tokenizer` finds one there."""
    folder = as_path(folder)
    return (folder / _T5_FILE).exists() or all((folder / name).exists() for name in _CLIP_FILES)


def load_tokenizer(folder: AnyPath) -> Tokenizer:
    """The tokenizer of a folder, T5's or CLIP's by its files.

    Raises:
      FileNotFoundError: the folder holds neither.
      ConfigError: a vocabulary without the start or the end of text.

    Example:
      >>> tokenizer = load_tokenizer("runs/quickstart/tokenizer")
      >>> tokenizer.encode("[[depth2image]] a red cube")
    """
    if not holds_tokenizer(folder):
        raise FileNotFoundError(
            f"no tokenizer at {folder}; a T5 folder holds {_T5_FILE}, a CLIP folder "
            f"{' and '.join(_CLIP_FILES)}"
        )
    return (T5Tokenizer if (as_path(folder) / _T5_FILE).exists() else CLIPTokenizer)(folder)


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
