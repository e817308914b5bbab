"""Optimised HLO as text, read as far as launches, copies and bytes go.

Only instructions that are launched count: those of the entry, of loop bodies and of branches.
What stands inside a fusion is computed element by element and never stored.
"""

import functools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

_ITEMSIZES = {
    "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "f8e4m3fn": 1, "f8e5m2": 1, "s16": 2,
    "u16": 2, "f16": 2, "bf16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8,
    "c64": 8, "c128": 16,
}  # fmt: skip
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_HEAD = re.compile(r"^\s*(ROOT )?%([\w.\-]+) = ")
_CALLED = re.compile(r"(?:body|condition|true_computation|false_computation)=%([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_FUSED = re.compile(r"calls=%([\w.\-]+)")
_TO_APPLY = re.compile(r"to_apply=%([\w.\-]+)")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_CONTRACTED = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")
_TARGET = re.compile(r'custom_call_target="([^"]*)"')

NEVER_LAUNCHED = frozenset(
    {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id"}
    | {"all-reduce-done", "all-gather-done", "collective-permute-done", "copy-done"}
    | {"async-start", "async-update", "async-done", "while", "conditional", "call"}
    | {"opt-barrier"}
)
_MOVES = frozenset(
    {"copy", "copy-start", "transpose", "slice", "dynamic-slice", "pad", "concatenate", "reverse"}
)
_PASSIVE = _MOVES | {"parameter", "constant", "bitcast", "reshape", "tuple", "convert"}
_UPDATES = ("scatter", "dynamic-update-slice")
_READS_A_PART = ("gather", "dynamic-slice", "slice")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction: its arrays are (dtype, shape) pairs, several for a tuple."""

    name: str
    opcode: str
    arrays: tuple[tuple[str, tuple[int, ...]], ...]
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    @property
    def num_elements(self) -> int:
        """Of its largest array."""
        return max((math.prod(shape) for _, shape in self.arrays), default=0)

    @property
    def num_bytes(self) -> float:
        """Of all its arrays."""
        return sum(_ITEMSIZES.get(dtype, 0) * math.prod(shape) for dtype, shape in self.arrays)

    @property
    def op_name(self) -> str:
        """Where in the traced program it came from."""
        match = _OP_NAME.search(self.attributes)
        return match[1] if match else ""

    @property
    def target(self) -> str:
        """Of a custom call: what is called."""
        match = _TARGET.search(self.attributes)
        return match[1] if match else ""

    @property
    def is_mosaic(self) -> bool:
        """Whether it is a call of a Mosaic kernel."""
        return self.opcode == "custom-call" and self.target.startswith("mosaic_gpu")

    @property
    def text(self) -> str:
        """``f32[4,32]{...} name`` without what nobody reads."""
        arrays = " ".join(f"{dtype}[{','.join(map(str, dims))}]" for dtype, dims in self.arrays)
        return f"{arrays} {self.opcode}"


@dataclass(frozen=True, slots=True)
class Computation:
    """Instructions in the order in which they run (the module is scheduled)."""

    name: str
    is_entry: bool
    instructions: tuple[Instruction, ...]


class Module:
    """A parsed HLO module and what can be asked of it."""

    def __init__(self, text: str) -> None:
        self.computations = {item.name: item for item in _computations(text)}
        entries = [item for item in self.computations.values() if item.is_entry]
        if len(entries) != 1:
            raise ValueError(
                f"not an HLO module: {len(entries)} ENTRY computations in {text[:80]!r}"
            )
        self.entry = entries[0]

    @functools.cached_property
    def launched_computations(self) -> tuple[Computation, ...]:
        """The entry and what it reaches through loops, branches and calls."""
        todo, seen = [self.entry.name], dict[str, None]()
        while todo:
            name = todo.pop()
            if name in seen:
                continue
            seen[name] = None
            for instruction in self.computations[name].instructions:
                todo += _structure_calls(instruction)
        return tuple(self.computations[name] for name in seen)

    @functools.cached_property
    def launches(self) -> tuple[Instruction, ...]:
        """Every instruction that becomes a kernel, a copy or a library call."""
        return tuple(
            instruction
            for computation in self.launched_computations
            for instruction in computation.instructions
            if instruction.opcode not in NEVER_LAUNCHED
        )

    @property
    def num_mosaic_calls(self) -> int:
        """Calls of Mosaic kernels."""
        return sum(instruction.is_mosaic for instruction in self.launches)

    def fused(self, instruction: Instruction) -> tuple[Instruction, ...]:
        """What stands inside a fusion; the instruction itself if it is none."""
        match = _FUSED.search(instruction.attributes)
        if instruction.opcode != "fusion" or not match:
            return (instruction,)
        return self.computations[match[1]].instructions

    def moves_only(self, instruction: Instruction) -> bool:
        """Whether a launch computes nothing: a copy, slice, transpose, or a fusion of those."""
        inside = self.fused(instruction)
        return all(item.opcode in _PASSIVE for item in inside) and any(
            item.opcode in _MOVES | {"convert"} for item in inside
        )

    def moved(self, sizes: frozenset[int]) -> tuple[Instruction, ...]:
        """Launches that write an array of one of ``sizes`` elements made of nothing but copies.

        A matrix product or a kernel may well write as many elements as some weight has; a launch
        without arithmetic that does so copies a pool or a weight.
        """
        return tuple(
            instruction
            for instruction in self.launches
            if any(math.prod(shape) in sizes for _, shape in instruction.arrays)
            and (self.moves_only(instruction) or self._converts_only(instruction))
        )

    def _converts_only(self, instruction: Instruction) -> bool:
        return {item.opcode for item in self.fused(instruction)} <= {*_PASSIVE, "select", "compare"}

    def flops(self, instruction: Instruction) -> int:
        """2 × multiply-adds of the matrix products in a launch; Mosaic kernels count as 0."""
        inside = self.fused(instruction)
        shapes = {item.name: item.arrays for item in inside}
        total = 0
        for item in inside:
            contracted = _CONTRACTED.search(item.attributes)
            if item.opcode == "dot" and contracted and item.operands[0] in shapes:
                _, lhs = shapes[item.operands[0]][0]
                depth = math.prod(lhs[int(axis)] for axis in contracted[1].split(",") if axis)
                total += 2 * item.num_elements * depth
        return total

    def bytes_moved(self, instruction: Instruction, producers: Mapping[str, Instruction]) -> float:
        """Bytes that a launch reads and writes; where only part of an array is used, the part."""
        inside = self.fused(instruction)
        if instruction.opcode != "fusion":
            inputs = [producers[name] for name in instruction.operands if name in producers]
            return instruction.num_bytes + sum(item.num_bytes for item in inputs)
        by_name = {item.name: item for item in inside}
        total = sum(_read_bytes(item, inside) for item in inside if item.opcode == "parameter")
        for item in inside:
            if item.is_root:
                outputs = [by_name[name] for name in item.operands if name in by_name]
                outputs = outputs if item.opcode == "tuple" else [item]
                total += sum(_written_bytes(output, by_name) for output in outputs)
        return total


def _computations(text: str) -> Iterator[Computation]:
    name, is_entry, lines = "", False, list[Instruction]()
    for line in text.splitlines():
        if line.endswith("{") and line.startswith(("%", "ENTRY")):
            is_entry = line.startswith("ENTRY")
            name = line.removeprefix("ENTRY").strip().lstrip("%").split()[0]
            lines = []
        elif line.startswith("}") and name:
            yield Computation(name, is_entry, tuple(lines))
            name = ""
        elif name:
            instruction = _instruction(line)
            if instruction is not None:
                lines.append(instruction)


def _instruction(line: str) -> Instruction | None:
    head = _HEAD.match(line)
    if not head:
        return None
    rest = line[head.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    kind, rest = rest[:end], rest[end:].lstrip()
    opcode, _, rest = rest.partition("(")
    close = _closing("(" + rest, 0)
    operands = re.findall(r"%([\w.\-]+)", rest[: close - 1])
    arrays = tuple(
        (dtype, tuple(int(size) for size in dims.split(",") if size))
        for dtype, dims in _ARRAY.findall(kind)
    )
    return Instruction(
        head[2], opcode, arrays, tuple(operands), rest[close:], is_root=bool(head[1])
    )


def _closing(text: str, start: int) -> int:
    """Index of the parenthesis that closes the one at ``start``."""
    depth = 0
    for index in range(start, len(text)):
        depth += (text[index] == "(") - (text[index] == ")")
        if depth == 0:
            return index
    raise ValueError(f"unbalanced parentheses in HLO text: {text[start : start + 80]!r}")


def _structure_calls(instruction: Instruction) -> list[str]:
    if instruction.opcode == "call":
        return _TO_APPLY.findall(instruction.attributes)
    if instruction.opcode == "async-start":
        return _FUSED.findall(instruction.attributes)
    if instruction.opcode not in ("while", "conditional"):
        return []
    branches = _BRANCHES.search(instruction.attributes)
    listed = re.findall(r"%([\w.\-]+)", branches[1]) if branches else []
    return _CALLED.findall(instruction.attributes) + listed


def _read_bytes(parameter: Instruction, inside: tuple[Instruction, ...]) -> float:
    """Bytes of a fusion's parameter that are read: its users may take a slice, or overwrite it."""
    total = 0.0
    for user in inside:
        if parameter.name not in user.operands:
            continue
        if user.operands[0] == parameter.name and user.opcode in _READS_A_PART:
            total += user.num_bytes
        elif not (user.operands[0] == parameter.name and user.opcode in _UPDATES):
            return parameter.num_bytes
    return min(total, parameter.num_bytes)


def _written_bytes(output: Instruction, by_name: Mapping[str, Instruction]) -> float:
    if output.opcode not in _UPDATES:
        return output.num_bytes
    update = output.operands[-1] if output.opcode == "scatter" else output.operands[1]
    return by_name[update].num_bytes if update in by_name else output.num_bytes
