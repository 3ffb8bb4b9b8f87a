"""Configs: load a config file, override its keys, check, compare and write it down.

A config is Python that computes. A file holds `get_config(arg)`, which returns an
`ml_collections.ConfigDict`; `arg` is the text after the colon of `configs/quickstart.py:tiny` and
goes through `parse_arg`. Overrides then set single keys, each read by the type of the value that it
replaces:

    config = load_config("configs/quickstart.py:tiny", overrides=["train.num_steps=100"])
    validate(config, [Check("train.num_steps", lambda n: n > 0, "must be positive", 100)])

Whatever is wrong is a `ConfigError` of one line a fault, with a value that works:

    config.<key>: what is wrong; for example <key>=<value>

This module imports no jax, so a misspelt key fails before any device is touched.
"""

import ast
import dataclasses
import difflib
import hashlib
import importlib.util
import inspect
import json
import pathlib
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

# What `differences` shows for a key that a config lacks.
ABSENT = "<absent>"

Config = ConfigDict | Mapping[str, Any]

_ROOT = pathlib.Path(__file__).resolve().parent.parent
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", tuple: "a tuple"}
_EXAMPLES = {int: 1, float: 0.1, bool: True, str: "name", tuple: (1, 2), list: [1, 2]}


class ConfigError(ValueError):
    """A config that cannot work. The message has one line a fault; see `config_error`."""


def config_error(
    key: str, problem: str, example: Any = None, *, example_key: str | None = None
) -> ConfigError:
    """Makes the error for one key; the caller raises it.

    Args:
      key: dotted key, such as `train.num_steps`.
      problem: what is wrong, without a full stop.
      example: a value that works; None leaves the example out.
      example_key: the key of the example, if it is another one.

    Returns:
      An error that reads `config.<key>: <problem>; for example <key>=<example>`.
    """
    hint = "" if example is None else f"; for example {example_key or key}={_format(example)}"
    return ConfigError(f"config.{key}: {problem}{hint}")


def load_config(spec: str, *, overrides: Sequence[str] = ()) -> ConfigDict:
    """Loads a config file and applies overrides in order, so that the last one wins.

    Args:
      spec: `path/to/file.py` or `path/to/file.py:arg`. A relative path is looked up from the
        working directory, then from the folder that holds the package.
      overrides: `key=value` texts for dotted keys that the config has. Whole numbers may be written
        1e6, booleans true or false, tuples 1,2 or (1,2). None is a value for every key that is not
        a boolean: it switches an option off.

    Returns:
      The config, locked: no code can add a key to it by a slip.

    Raises:
      ConfigError: for a missing file, a file without `get_config`, an unknown key or a value of
        another type. Errors of the config file's own code pass through.

    Example:
      >>> config = load_config("configs/quickstart.py:tiny", overrides=["train.num_steps=100"])
    """
    path, colon, arg = spec.partition(".py:")
    path += ".py" if colon else ""
    get_config = _import_get_config(path)
    if inspect.signature(get_config).parameters:
        config = get_config(arg or None)
    elif arg:
        raise ConfigError(f"config: {path} takes no argument; for example --config={path}")
    else:
        config = get_config()
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"config: get_config of {path} must return a ConfigDict, got {config!r}")
    for override in overrides:
        _apply_override(config, override)
    return config.lock()


def parse_arg(arg: str | None, **defaults: Any) -> ConfigDict:
    """Reads a config file's argument, such as `tiny,steps=100,mesh=fsdp8`.

    Args:
      arg: comma-separated `name=value`, or a bare name for a switch. Commas inside brackets do not
        separate. None and "" give the defaults.
      **defaults: every name that the file knows, with its default, which also gives its type.

    Returns:
      A ConfigDict with one field a name.

    Raises:
      ConfigError: for an unknown name or a value of another type.

    Example:
      >>> parse_arg("tiny,steps=100", tiny=False, steps=0, mesh="").steps
      100
    """
    values = ConfigDict(defaults)
    for item in _split_commas(arg or ""):
        name, equals, text = item.partition("=")
        if name not in values:
            raise _unknown_key(name, values.to_dict())
        bare = "true" if isinstance(values[name], bool) else None
        values[name] = _parse(name, text if equals else bare, values[name], values.get_type(name))
    return values


def _import_get_config(path: str) -> Callable[..., Any]:
    file = next((p for p in (pathlib.Path(path), _ROOT / path) if p.is_file()), None)
    if file is None:
        folders = (pathlib.Path(path).parent, _ROOT / pathlib.Path(path).parent, _ROOT / "configs")
        folder = next(p for p in folders if p.is_dir())
        names = [p.name for p in folder.glob("*.py") if p.name != "__init__.py"]
        near = difflib.get_close_matches(pathlib.Path(path).name, names, n=1, cutoff=0.0)
        shown = folder.relative_to(_ROOT) if folder.is_relative_to(_ROOT) else folder
        hint = "".join(f"; for example --config={shown / name}" for name in near)
        raise ConfigError(f"config: there is no file {path}{hint}")
    spec = importlib.util.spec_from_file_location(f"config_file_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, "get_config", None)):
        raise ConfigError(f"config: {path} has no function get_config(arg)")
    return module.get_config


def _apply_override(config: ConfigDict, override: str) -> None:
    key, equals, text = override.partition("=")
    key = key.strip()
    leaves = _leaves(config)
    inside = [k for k in leaves if k.startswith(f"{key}.")]
    if inside:
        example = {"example": leaves[inside[0]], "example_key": inside[0]}
        raise config_error(key, "is a group of keys, not a value", **example)
    if key not in leaves:
        raise _unknown_key(key, leaves)
    group: Any = config
    *parents, name = key.split(".")
    for parent in parents:
        group = group[parent]
    group[name] = _parse(key, text if equals else None, group[name], group.get_type(name))


def _unknown_key(key: str, leaves: Mapping[str, Any]) -> ConfigError:
    """Names the key with the same last part, else the one with the most letters in common."""
    same = [k for k in leaves if k.split(".")[-1] == key.split(".")[-1]]
    near = difflib.get_close_matches(key, same or list(leaves), n=1, cutoff=0.0)
    if not near:
        return config_error(key, "no such key; none can be set here")
    problem = f"no such key, the nearest is {near[0]}"
    return config_error(key, problem, leaves[near[0]], example_key=near[0])


def _parse(key: str, text: str | None, present: Any, kind: type) -> Any:
    """Reads `text` as `kind`, the type of the value `present`."""
    example = _EXAMPLES.get(kind) if present is None else present
    if text is None:
        raise config_error(key, "no value given", example)
    try:
        return _parse_as(kind, text.strip(), present)
    except (ValueError, SyntaxError, TypeError):
        like = f" like {_format(present)}" if kind in (tuple, list) and present else ""
        what = _KINDS.get(kind, f"a {kind.__name__}")
        raise config_error(key, f"takes {what}{like}, got {text.strip()!r}", example) from None


def _parse_as(kind: type, text: str, present: Any) -> Any:
    if kind is bool:
        if text.lower() not in ("true", "1", "false", "0"):
            raise ValueError
        return text.lower() in ("true", "1")
    if text == "None":
        return None
    if kind is str:
        quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
        return text[1:-1] if quoted else text
    if kind is int:
        number = float(text)
        if not number.is_integer():  # 1e6 is a whole number, 1.5 is not
            raise ValueError
        return int(text) if text.lstrip("+-").replace("_", "").isdigit() else int(number)
    if kind is float:
        return float(text)
    if kind in (tuple, list):
        return kind(_parse_items(text, present))
    if kind is type(None):
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return text
    raise TypeError  # such as a function: only the config file can set it


def _parse_items(text: str, present: Sequence[Any] | None) -> list[Any]:
    try:
        items = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        items = _split_commas(text.strip("()[]"))
    items = list(items) if isinstance(items, tuple | list) else [items]
    kinds = {type(item) for item in present or ()}
    if kinds == {float}:
        items = [float(item) if type(item) is int else item for item in items]
    if len(kinds) == 1 and {type(item) for item in items} - kinds:
        raise ValueError
    return items


def _split_commas(text: str) -> list[str]:
    """Splits at the commas outside brackets; drops empty parts."""
    parts, depth = [""], 0
    for char in text:
        depth += (char in "([") - (char in ")]")
        if char == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return [part.strip() for part in parts if part.strip()]


def _format(value: Any) -> str:
    """The text that the command line reads back as `value`."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return value if value and not set(value) & set(" ,'\"()[]$") else repr(value)
    return repr(value).replace(", ", ",") if isinstance(value, tuple | list) else repr(value)


MAX_SIZE = 2**31 - 1
"""The largest whole number that a field of a model's JSON may have."""


def read_fields(
    kind: type, values: Mapping[str, Any], *, without: Collection[str] = ()
) -> dict[str, Any]:
    """The fields of a dataclass that a model's JSON gives, by name.

    Other keys are left out, and so are fields that are null. Lists become tuples.

    Args:
      kind: the dataclass; its annotations say what each value has to be.
      values: the JSON object.
      without: fields that the JSON does not decide.

    Raises:
      ConfigError: a field is missing, or its value is of another type, not finite, or no size;
        names all of them.
    """
    hints, chosen, faults = typing.get_type_hints(kind), {}, []
    for field in dataclasses.fields(kind):
        value = values.get(field.name)
        if field.name in without:
            continue
        if value is None:
            if field.default is dataclasses.MISSING:
                faults.append(f"{field.name} is missing")
        elif _is_kind(value, hints[field.name]):
            chosen[field.name] = tuple(value) if isinstance(value, list) else value
        else:
            wanted = getattr(hints[field.name], "__name__", None) or str(hints[field.name])
            faults.append(f"{field.name} is {repr(value)[:60]} and not of the kind {wanted}")
    if faults:
        raise ConfigError(f"the settings of {kind.__name__}: {'; '.join(faults)}")
    return chosen


def _is_kind(value: Any, hint: Any) -> bool:
    """Whether a JSON value is what an annotation says: whole numbers are sizes, from 1 up."""
    if arguments := typing.get_args(hint):
        if typing.get_origin(hint) is tuple:
            return isinstance(value, list | tuple) and all(_is_kind(v, arguments[0]) for v in value)
        return any(_is_kind(value, argument) for argument in arguments)
    if hint is int:
        return type(value) is int and 1 <= value <= MAX_SIZE
    if hint is float:
        return type(value) in (int, float) and abs(value) < float("inf")
    return type(value) is hint


class Check(NamedTuple):
    """One condition on a config. A module exports a list of them; `validate` runs all lists.

    Attributes:
      keys: a dotted key, or a tuple of keys for a condition between several.
      predicate: takes the value of each key in turn; true if they are fine. A TypeError counts as
        false, so that None needs no case of its own.
      message: what must hold, such as "must be positive".
      example: a value of the first key that works.
    """

    keys: str | tuple[str, ...]
    predicate: Callable[..., bool]
    message: str
    example: Any = None


def validate(config: Config, checks: Iterable[Check]) -> None:
    """Runs every check and reports all that fail together, one line each.

    Raises:
      ConfigError: if any check fails or asks for a key that is not there.

    Example:
      >>> check = Check(("width", "heads"), lambda w, h: w % h == 0, "must be a multiple", 64)
      >>> validate({"width": 64, "heads": 4}, [check])
    """
    leaves = _leaves(config)
    faults = []
    for check in checks:
        keys = (check.keys,) if isinstance(check.keys, str) else check.keys
        missing = [key for key in keys if key not in leaves]
        if missing:
            example = check.example if missing[0] == keys[0] else None
            faults.append(config_error(missing[0], "is missing", example))
            continue
        try:
            holds = check.predicate(*(leaves[key] for key in keys))
        except TypeError:
            holds = False
        if not holds:
            others = ", ".join(f"{key}={_format(leaves[key])}" for key in keys[1:])
            got = _format(leaves[keys[0]]) + (f" with {others}" if others else "")
            faults.append(config_error(keys[0], f"is {got}, {check.message}", check.example))
    if faults:
        raise ConfigError("\n".join(dict.fromkeys(map(str, faults))))


def to_dict(config: Config) -> dict[str, Any]:
    """Nested dicts of what JSON holds: tuples become lists, NumPy scalars Python's.

    Raises:
      ConfigError: for a value that JSON cannot hold, such as a function or an array.
    """
    return _plain(config, "")


def flatten(config: Config) -> dict[str, Any]:
    """The plain values by dotted key, sorted: `{"train.num_steps": 100, ...}`."""
    return dict(sorted(_leaves(to_dict(config)).items()))


def to_json(config: Config) -> str:
    """JSON with sorted keys, two spaces of indent and a last newline: equal configs, equal text."""
    return _json(to_dict(config)) + "\n"


def config_hash(config: Config) -> str:
    """SHA-256 of `to_json`, in hexadecimal.

    The same in every process and Python: keys are sorted, and a float is written as the shortest
    text that reads back as itself.
    """
    return hashlib.sha256(to_json(config).encode()).hexdigest()


class Difference(NamedTuple):
    """The values of one key in two configs; `ABSENT` where a config lacks it."""

    left: Any
    right: Any


def differences(left: Config, right: Config) -> dict[str, Difference]:
    """The flattened keys whose values differ, sorted. Either side may come from `json.loads`.

    Example:
      >>> differences({"a": 1, "b": 2}, {"a": 1, "b": 3})
      {'b': Difference(left=2, right=3)}
    """
    a, b = flatten(left), flatten(right)
    pairs = {k: Difference(a.get(k, ABSENT), b.get(k, ABSENT)) for k in sorted(a.keys() | b.keys())}
    # Compared as JSON, so that nan equals nan and 1 is not True.
    return {k: pair for k, pair in pairs.items() if _json(pair.left) != _json(pair.right)}


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True)


def _leaves(config: Config, prefix: str = "") -> dict[str, Any]:
    """Dotted keys with their values as they are."""
    leaves = {}
    for name, value in config.items():
        is_group = isinstance(value, ConfigDict | Mapping)
        leaves |= _leaves(value, f"{prefix}{name}.") if is_group else {f"{prefix}{name}": value}
    return leaves


def _plain(value: Any, key: str) -> Any:
    if isinstance(value, ConfigDict | Mapping):
        return {str(k): _plain(v, f"{key}.{k}".lstrip(".")) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item, key) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, pathlib.PurePath):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise config_error(key, f"is a {type(value).__name__}, but must be a number, a text or a tuple")
