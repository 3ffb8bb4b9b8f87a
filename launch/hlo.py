"""What a compiled program moves: collectives and HBM traffic, read from its text.

XLA's own sums (`compiled.cost_analysis()`) count the body of a loop once. Here the body of a
scanned stack of layers counts as often as it runs: trip counts stand in the loops' conditions.
"""

import collections
import functools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

COLLECTIVES = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")

BITS = {"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "f16": 16}
BITS |= {"bf16": 16, "s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64}
BITS |= dict.fromkeys(("f8e4m3fn", "f8e5m2", "f8e4m3", "f8e4m3b11fnuz", "f8e8m0fnu"), 8)

_SHAPE = re.compile(r"([a-z][a-z0-9]*)\[([0-9,]*)\](\{[^{}]*\})?")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|branch_computations)=\{?(%[^\s,})]+)")
# nothing moves for these
_FREE = {"parameter", "get-tuple-element", "tuple", "bitcast", "constant", "after-all", "while"}
_FREE |= {"conditional", "call", "partition-id", "iota", "copy-done", "slice-done", "async-done"}
_FREE |= {f"{kind}-done" for kind in COLLECTIVES}
_SLICES = {"dynamic-slice", "slice", "gather"}
_MATMULS = ("__cublas$gemm", "__cublas$lt$matmul")
_NARROW = {dtype for dtype, bits in BITS.items() if bits == 8 and dtype != "pred"}


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    line: str


class Collective(NamedTuple):
    """A collective operation of one chip.

    Attributes:
      kind: one of `COLLECTIVES`.
      shape: of its result, such as `bf16[3840,960]`; of several, all.
      num_bytes: of its largest side: what is gathered, reduced or exchanged.
      group: partitions that take part, of the first group.
      count: how often it runs in one execution of the program.
      source: JAX operation that it comes from.
    """

    kind: str
    shape: str
    num_bytes: int
    group: tuple[int, ...]
    count: int
    source: str

    @property
    def sent(self) -> float:
        """Bytes that a chip sends in all runs, by the best known ring."""
        share = (len(self.group) - 1) / max(len(self.group), 1)
        paired = float(len(self.group) > 1)
        factor = {"all-reduce": 2 * share, "collective-permute": paired}.get(self.kind, share)
        return factor * self.num_bytes * self.count


def parse(text: str) -> dict[str, list[Instruction]]:
    """Instructions of every computation by its name; the program starts at `ENTRY`.

    Raises:
      ValueError: a computation ends before its result: the text is of another form.
    """
    found: dict[str, list[Instruction]] = {}
    current: list[Instruction] | None = None
    for line in text.splitlines():
        if current is None:
            header = re.match(r"(ENTRY )?(%\S+) \(.*\{$", line)
            if header:
                current = found.setdefault("ENTRY" if header[1] else header[2], [])
        elif line.rstrip() == "}":  # attributes of a kernel may have lines that begin with one
            if not any("ROOT " in i.line for i in current):
                raise ValueError(f"a computation without a result before: {line}")
            current = None
        elif instruction := _instruction(line):
            current.append(instruction)
    return found


def _instruction(line: str) -> Instruction | None:
    head = re.match(r"\s+(?:ROOT )?(%\S+) = ", line)
    if not head:
        return None
    rest = line[head.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    start = len(opcode)
    inside = rest[start + 1 : _closing(rest, start)]
    return Instruction(head[1], shape, opcode, tuple(re.findall(r"%[^\s,)]+", inside)), line)


def _closing(text: str, start: int) -> int:
    """Place of the bracket that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place
    raise ValueError(f"no closing bracket: {text[:200]}")


def runs(program: dict[str, list[Instruction]]) -> dict[str, int]:
    """How often each computation runs, in loops as often as they turn."""
    count: collections.Counter[str] = collections.Counter()

    def visit(name: str, times: int) -> None:
        count[name] += times
        for instruction in program[name]:
            called = _CALLED.findall(instruction.line)
            turns = trip_count(program, instruction) if instruction.opcode == "while" else 1
            for other in called:
                if other in program:
                    visit(other, times * turns)

    visit("ENTRY", 1)
    return dict(count)


def trip_count(program: dict[str, list[Instruction]], loop: Instruction) -> int:
    """How often a loop turns: the constant that its condition compares with.

    Raises:
      ValueError: the condition is of another form.
    """
    known = re.search(r"known_trip_count\D*(\d+)", loop.line)
    if known:
        return int(known[1])
    name = re.search(r"condition=(%[^\s,]+)", loop.line)
    condition = program[name[1]] if name else []
    constants = [re.search(r" constant\((\d+)\)", i.line) for i in condition]
    limits = [int(c[1]) for c in constants if c]
    if len(limits) != 1 or "direction=LT" not in condition[-1].line:
        raise ValueError(f"a loop of unknown length: {loop.line.strip()[:200]}")
    return limits[0]


def collectives(program: dict[str, list[Instruction]]) -> list[Collective]:
    """Collectives of the program, each once with its count.

    The compiler spreads an asynchronous one over several fusions that carry the same channel, and
    makes of one between TPU slices sends to the runtime that connects them.
    """
    times = runs(program)
    found: dict[tuple[str, str], Collective] = {}
    for name, instructions in program.items():
        for i in instructions:
            kind = i.opcode.removesuffix("-start")
            between = _between_slices(i, count=times.get(name, 0))
            if between is not None:
                found[between.kind, i.name] = between
            if kind not in COLLECTIVES or not times.get(name):
                continue
            channel = re.search(r"channel_id=(\d+)", i.line)
            key = (kind, channel[1] if channel else i.name)
            source = re.search(r'op_name="([^"]*)"', i.line)
            shapes = _shapes(_result(i))
            sizes = [_bytes(dtype, dims) for dtype, dims, _ in shapes]
            group = _group(i.line)
            collective = Collective(
                kind=kind,
                shape=" ".join(f"{dtype}[{dims}]" for dtype, dims, _ in shapes),
                num_bytes=sum(sizes) * (len(group) if kind == "reduce-scatter" else 1),
                group=group,
                count=times[name],
                source=source[1] if source else "",
            )
            if key not in found or found[key].count < collective.count:
                found[key] = collective
    return list(found.values())


def _between_slices(i: Instruction, *, count: int) -> Collective | None:
    """What a send hands to the runtime between slices: this chip's part, to its twins in others."""
    kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', i.line)
    if i.opcode != "send" or kind is None or not count:
        return None
    target = re.search(r'_xla_megascale_target="\{([\d,]+)\}x\{(\d+):(\d+)\}"', i.line)
    if target is None:
        raise ValueError(f"a transfer of unknown target: {i.line.strip()[:300]}")
    slices, chips = target[1].count(",") + 1, int(target[3]) - int(target[2]) + 1
    shapes = _shapes(_elements(i.shape)[0])
    return Collective(
        kind=kind[1].lower().replace("_", "-"),
        shape=" ".join(f"{dtype}[{dims}]" for dtype, dims, _ in shapes),
        num_bytes=sum(_bytes(dtype, dims) for dtype, dims, _ in shapes),
        group=tuple(number * chips for number in range(slices)),
        count=count,
        source="between slices",
    )


def products(program: dict[str, list[Instruction]]) -> tuple[int, int]:
    """Matrix products that run, and how many of them have two operands of 8 bits."""
    times = runs(program)
    total = narrow = 0
    for name, instructions in program.items():
        shapes = {i.name: i.shape for i in instructions}
        for i in instructions:
            if i.opcode not in ("dot", "convolution") and not any(m in i.line for m in _MATMULS):
                continue
            types = {dtype for o in i.operands[:2] for dtype, _, _ in _shapes(shapes.get(o, ""))}
            total += times.get(name, 0)
            narrow += times.get(name, 0) if types and types <= _NARROW else 0
    return total, narrow


def _result(i: Instruction) -> str:
    """Shape of what an instruction makes; an asynchronous one's has its operands before it."""
    if i.opcode.endswith("-start") and i.opcode != "all-reduce-start":
        return _elements(i.shape)[1]
    return i.shape


def _elements(shape: str) -> list[str]:
    """The members of a tuple's shape: `((f32[2], f32[3]), f32[4])` has two."""
    found, depth = [""], 0
    for sign in shape[1:-1]:
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(sign, 0)
        if sign == "," and depth == 0:
            found.append("")
        else:
            found[-1] += sign
    return found


def _group(line: str) -> tuple[int, ...]:
    """Partitions of the first group; of pairs, the first two that differ."""
    pairs = re.search(r"source_target_pairs=\{(\{.*?\})\}", line)
    if pairs:
        found = [(int(a), int(b)) for a, b in re.findall(r"\{(\d+),(\d+)\}", pairs[1])]
        return next((pair for pair in found if pair[0] != pair[1]), found[0][:1])
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
    if listed:
        return tuple(map(int, listed[1].split(",")))
    axes = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?)\))? \{([^}]*)\}", line
    )
    if axes:
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", axes[1])}
        names = list(sizes)
        chosen = re.findall(r"'(\w+)'", axes[3])
        order = _iota(axes[2]) if axes[2] else np.arange(math.prod(sizes.values()))
        ids = order.reshape(list(sizes.values()))
        first = tuple(slice(None) if name in chosen else 0 for name in names)
        return tuple(int(i) for i in ids[first].ravel())
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", line)
    if iota:
        shape = list(map(int, iota[1].split(",")))
        return tuple(int(i) for i in _iota(iota[2]).reshape(shape)[0])
    raise ValueError(f"a collective of unknown groups: {line.strip()[:300]}")


def _iota(text: str) -> np.ndarray:
    """`[4,2]T(1,0)`: the numbers from 0 in this shape, transposed; or a list of them."""
    form = re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if not form:
        return np.asarray(re.findall(r"\d+", text), int)
    sizes = list(map(int, form[1].split(",")))
    ids = np.arange(math.prod(sizes)).reshape(sizes)
    return ids.transpose(list(map(int, form[2].split(",")))) if form[2] else ids


def hbm_bytes(program: dict[str, list[Instruction]]) -> int:
    """Bytes that all instructions read from and write to HBM.

    Each operand and result counts once; of a stack of layers only the slice that is used. What
    lies in other memories (`S(1)` and higher in a layout) does not count. A kernel that reads an
    operand again and again counts it once.
    """
    times = runs(program)
    inside = set(_fused(program))
    total = 0
    for name, instructions in program.items():
        if name in inside or not times.get(name):
            continue
        shapes = {i.name: i.shape for i in instructions}
        total += times[name] * sum(_traffic(program, i, shapes) for i in instructions)
    return total


def _fused(program: dict[str, list[Instruction]]) -> Iterator[str]:
    """Computations that are part of one instruction: fusions, reductions, comparisons."""
    pending = [
        called
        for instructions in program.values()
        for i in instructions
        if i.opcode not in ("while", "conditional", "call")
        for called in _CALLED.findall(i.line)
    ]
    seen: set[str] = set()
    while pending:
        name = pending.pop()
        if name in program and name not in seen:
            seen.add(name)
            pending += [c for i in program[name] for c in _CALLED.findall(i.line)]
            yield name


def _traffic(program: dict[str, list[Instruction]], i: Instruction, shapes: dict[str, str]) -> int:
    if i.opcode in _FREE:
        return 0
    if i.opcode in _SLICES:
        return 2 * _hbm(i.shape)
    if i.opcode == "dynamic-update-slice":
        return 2 * _hbm(shapes.get(i.operands[1], ""))
    if i.opcode in ("slice-start", "dynamic-slice-start"):  # ((whole, ...), slice, ...)
        whole = _shapes(shapes.get(i.operands[0], ""))[:1]
        part = next((shape for shape in _shapes(i.shape) if shape[:2] != whole[0][:2]), whole[0])
        return _bytes(*part[:2]) + _hbm("{}[{}]{}".format(*part))
    called = _called(i)
    if called in program and i.opcode == "fusion":
        reads = (
            _read(program, called, number, shapes.get(name, ""))
            for number, name in enumerate(i.operands)
        )
        return sum(reads) + _written(program[called], i)
    read = sum(_hbm(shapes.get(name, "")) for name in i.operands)
    if i.opcode.removesuffix("-start") in COLLECTIVES:
        return read + _hbm(_result(i))
    if i.opcode == "copy-start":  # (destination, source, ...)
        return read + _hbm("{}[{}]{}".format(*_shapes(i.shape)[0]))
    return read + _hbm(i.shape)


def _called(i: Instruction) -> str:
    found = re.search(r"calls=(%[^\s,]+)", i.line)
    return found[1] if found else ""


def _read(program: dict[str, list[Instruction]], name: str, number: int, outer: str) -> int:
    """Bytes that a fused computation reads of a parameter: of a stack the slices that it uses."""
    body = program[name]
    whole = _hbm(outer)
    parameter = next((i for i in body if f" parameter({number})" in i.line), None)
    if parameter is None or not whole:
        return 0
    users = collections.defaultdict(list)
    for other in body:
        for operand in set(other.operands):
            users[operand].append(other)
    alias = {parameter.name, *_bitcasts(parameter.name, users)}
    total = 0
    for use in _through_bitcasts(parameter.name, users):
        if use.opcode in _SLICES and use.operands[0] in alias:
            total += _size(use.shape)
        elif use.opcode == "dynamic-update-slice" and use.operands[0] in alias:
            continue  # in place
        elif _called(use) in program:
            places = [k for k, operand in enumerate(use.operands) if operand in alias]
            total += sum(_read(program, _called(use), k, outer) for k in places)
        else:
            return whole
    return min(total, whole)


def _written(body: list[Instruction], i: Instruction) -> int:
    """Bytes that a fusion writes: of a stack that it updates in place the slice."""
    inner = {other.name: other for other in body}
    updates = [other for other in body if other.opcode == "dynamic-update-slice"]
    written = _hbm(i.shape)
    for update in updates:
        part = inner.get(update.operands[1])
        if part is not None and written >= _size(update.shape):
            written -= _size(update.shape) - _size(part.shape)
    return written


def _bitcasts(name: str, users: dict[str, list[Instruction]]) -> list[str]:
    found = []
    for user in users[name]:
        if user.opcode == "bitcast":
            found += [user.name, *_bitcasts(user.name, users)]
    return found


def _through_bitcasts(name: str, users: dict[str, list[Instruction]]) -> list[Instruction]:
    found = []
    for user in users[name]:
        found += _through_bitcasts(user.name, users) if user.opcode == "bitcast" else [user]
    return found


@functools.lru_cache(maxsize=100_000)
def _shapes(text: str) -> tuple[tuple[str, str, str], ...]:
    """(type, dimensions, layout) of every array in a shape's text."""
    return tuple((m[1], m[2], m[3] or "") for m in _SHAPE.finditer(text) if m[1] in BITS)


def _bytes(dtype: str, dims: str) -> int:
    return math.prod(map(int, filter(None, dims.split(",")))) * BITS[dtype] // 8


def _size(text: str) -> int:
    return sum(_bytes(dtype, dims) for dtype, dims, _ in _shapes(text))


def _hbm(text: str) -> int:
    """Bytes of the arrays that lie in HBM, the memory without a mark in the layout."""
    return sum(
        _bytes(dtype, dims)
        for dtype, dims, layout in _shapes(text)
        if not re.search(r"S\(", layout)
    )
