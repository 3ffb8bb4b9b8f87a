"""From Unicode's short names to words in a sentence: phrases, kinds, and what a mirror changes."""

import re

_REWORDED = {
    "airplane arrival": "landing airplane",
    "airplane departure": "departing airplane",
    "badminton": "badminton racket",
    "bowling": "bowling ball with pins",
    "chart decreasing": "falling chart",
    "chart increasing": "rising chart",
    "cooking": "fried egg in a pan",
    "cricket game": "cricket bat",
    "dna": "DNA strand",
    "dvd": "DVD",
    "field hockey": "field hockey stick",
    "hourglass done": "hourglass",
    "ice hockey": "ice hockey stick",
    "joker": "joker card",
    "kaaba": "Kaaba",
    "lacrosse": "lacrosse stick",
    "locked": "lock",
    "locked with key": "lock with a key",
    "locked with pen": "lock with a pen",
    "mate": "cup of mate",
    "mount fuji": "Mount Fuji",
    "performing arts": "theater masks",
    "person in suit levitating": "levitating person in a suit",
    "ping pong": "ping pong paddle",
    "sake": "bottle of sake",
    "salt": "salt shaker",
    "speaker medium volume": "speaker",
    "tennis": "tennis racket",
    "unlocked": "open lock",
}
_NO_THINGS = frozenset(
    {
        "ZZZ",
        "breast-feeding",
        "camping",
        "chart increasing with yen",
        "construction",
        "dashing away",
        "dizzy",
        "foggy",
        "high voltage",
        "horse racing",
        "hourglass not done",
        "milky way",
        "moon viewing ceremony",
        "rolling on the floor laughing",
        "speaker high volume",
        "speaker low volume",
        "wedding",
    }
)
_QUOTES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"'})
_HAIR = re.compile(r"(man|woman|person) (.* hair|beard)$")
_BALD = re.compile(r"(man|woman|person) bald$")
_TIME = re.compile(r"(\w+ o'clock|\w+-thirty)$")

_DEFINITE = frozenset({"Statue of Liberty", "Tokyo tower", "Kaaba"})
_PROPER = frozenset({"Mount Fuji", "Santa Claus", "Mrs. Claus", "Mx Claus"})
_MASS = frozenset(
    "bacon bread broccoli butter coral fire fog food garlic ice luggage meat oden polish popcorn "
    "rice soap spaghetti sushi thread wood yarn".split()
)
_PLURAL = frozenset({"men", "people", "women"})
_SINGULAR = frozenset({"rhinoceros"})
_HEAD_ENDS = re.compile(
    r" (?:and|at|behind|down|facing|getting|gesturing|holding|hugging|in|lifting|of|on|over|"
    r"pointing|savoring|showing|to|up|with|without|wrestling) "
)
_AN = re.compile(r"(?:[aeiou]|hour|x-ray|OK\b)", re.IGNORECASE)
_A = re.compile(r"(?:one\b|uni|eu|ewe)", re.IGNORECASE)

_PERSONS = frozenset(
    "man woman person men women people boy girl child old older santa mrs. mx".split()
)
_LOOKS = frozenset(
    "black blue brown green grey light orange pink purple red white yellow blond curly face".split()
)
_ALIASES = {
    "mermaid": "merperson",
    "merman": "merperson",
    "princess": "prince",
    "with crown": "prince",
}
_MOON = re.compile(r"moon(?: face)?$")

_SIDED = re.compile(r"\b(?:left|right|leftwards|rightwards|clock|waxing|waning|quarter)\b")


def to_words(name: str) -> str | None:
    """What a subject is called in a sentence; None where the name is no thing or is a list.

    Example:
      >>> to_words("woman red hair"), to_words("nine o’clock"), to_words("family man, boy")
      ('woman with red hair', 'clock at nine o'clock', None)
    """
    name = name.translate(_QUOTES)
    if name in _NO_THINGS or "," in name:
        return None
    name = _REWORDED.get(name, name)
    name = _HAIR.sub(r"\1 with \2", name).replace("with beard", "with a beard")
    return _TIME.sub(r"clock at \1", _BALD.sub(r"bald \1", name))


def phrase(words: str) -> str:
    """A thing's words with the article that they need.

    Example:
      >>> phrase("fox"), phrase("owl"), phrase("grapes"), phrase("Santa Claus")
      ('a fox', 'an owl', 'grapes', 'Santa Claus')
    """
    if words in _PROPER:
        return words
    if words in _DEFINITE:
        return f"the {words}"
    head = _HEAD_ENDS.split(f"{words} ", maxsplit=1)[0].split()[-1]
    many = head in _PLURAL or (head.endswith("s") and not head.endswith(("ss", "us", "is")))
    if (many and head not in _SINGULAR) or head in _MASS:
        return words
    return f"an {words}" if _AN.match(words) and not _A.match(words) else f"a {words}"


def kind_of(words: str) -> str:
    """What subjects share that differ in a person's sex, age or hair, or in a colour.

    Subjects of a kind look much alike: they go into one split, and never into one scene.

    Example:
      >>> kind_of("woman cook"), kind_of("cook"), kind_of("black cat"), kind_of("cat face")
      ('cook', 'cook', 'cat', 'cat')
    """
    if _MOON.search(words):
        return "moon"
    if words.startswith("clock at"):
        return "clock"
    rest = [word for word in words.lower().split() if word not in _PERSONS] or ["person"]
    kind = " ".join([word for word in rest if word not in _LOOKS] or rest)
    return _ALIASES.get(kind, kind)


def are_apart(one: str, other: str) -> bool:
    """Whether the words of two subjects tell them apart: `cat` also says `black cat`."""
    first, second = set(one.lower().split()), set(other.lower().split())
    return kind_of(one) != kind_of(other) and not (first <= second or second <= first)


def has_side(words: str) -> bool:
    """Whether a mirror makes the words wrong: clocks, and what points to a side."""
    return bool(_SIDED.search(words.replace("-", " ")))
