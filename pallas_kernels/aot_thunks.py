"""The executable as XLA:GPU runs it: a tree of thunks, read from its dump.

    001: kCopy         [source | next=002 (1)] kCopy
    039: kConditional  [prev=036 (1) | next=040 (1)]
      false_branch:
        037: kCustomKernel [source | sink] loop_select_fusion grid: [8016, 1, 1] …

A thunk is one launch or one control structure; what a structure holds is indented below it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

COMMAND_BUFFER = "kCommandBuffer"  # one CUDA graph
WHILE = "kWhile"
CONDITIONAL = "kConditional"
COPY = "kCopy"
_LAUNCH_NOTHING = (COMMAND_BUFFER, WHILE, CONDITIONAL, "kSequential", "kAsyncStart", "kAsyncDone")

_LINE = re.compile(r"^(\s*)(\d+): (k\w+)\s+\[[^\]]*\]\s*(\S*)")
_INFO = re.compile(r'profile_annotation: "([^"]*)"\s+thunk_id: (\d+)')


@dataclass(frozen=True, slots=True)
class Thunk:
    """One thunk.  ``parents`` are the kinds of the structures around it, outermost first."""

    number: int
    kind: str
    kernel: str  # name of the device function, or the kind again
    parents: tuple[str, ...]
    has_children: bool = False
    instruction: str = ""  # name of the HLO instruction it came from

    @property
    def is_kernel(self) -> bool:
        """Whether it launches something, rather than holding other thunks or waiting for them."""
        return not self.has_children and self.kind not in _LAUNCH_NOTHING

    @property
    def is_conditional(self) -> bool:
        """Whether it runs only if a branch is taken."""
        return CONDITIONAL in self.parents

    @property
    def is_in_graph(self) -> bool:
        """Whether a CUDA graph launches it."""
        return COMMAND_BUFFER in self.parents


def parse_thunks(text: str) -> tuple[Thunk, ...]:
    """The thunks of a dumped thunk sequence, in order of execution."""
    thunks: list[Thunk] = []
    open_thunks: list[tuple[int, int]] = []  # (indentation, index): what the next may lie in
    for line in text.splitlines():
        match = _LINE.match(line)
        if not match:
            continue
        indentation, kind = len(match[1]), match[3]
        while open_thunks and open_thunks[-1][0] >= indentation:
            open_thunks.pop()
        if open_thunks:
            parent = open_thunks[-1][1]
            thunks[parent] = replace(thunks[parent], has_children=True)
        parents = tuple(thunks[index].kind for _, index in open_thunks)
        open_thunks.append((indentation, len(thunks)))
        thunks.append(Thunk(int(match[2]), kind, match[4] or kind, parents))
    return tuple(thunks)


def dumped_program(folder: Path) -> str:
    """What the names of the dumps of the largest program in ``folder`` begin with.

    Raises:
        FileNotFoundError: XLA dumped no program there.
    """
    dumps = list(folder.glob("*.thunk_sequence.txt"))
    if not dumps:
        raise FileNotFoundError(
            f"XLA wrote no thunk sequence to {folder}; the program was not compiled here "
            "(a compilation cache answered, or the compiler is another than XLA:GPU)"
        )
    largest = max(dumps, key=lambda dump: dump.stat().st_size)
    return largest.name.removesuffix("thunk_sequence.txt")


def read_thunks(folder: Path) -> tuple[Thunk, ...]:
    """The thunks of the largest program that XLA dumped to ``folder``."""
    program = folder / dumped_program(folder)
    # written only where a pass changed something, which it does not where no graph is made
    final = Path(f"{program}thunk_sequence_after_thunk_passes.txt")
    path = final if final.is_file() else Path(f"{program}thunk_sequence.txt")
    metadata = Path(f"{program}thunk_metadata.txt")
    names = _instruction_names(metadata.read_text()) if metadata.is_file() else {}
    return tuple(
        replace(thunk, instruction=names.get(thunk.number, "")) if thunk.is_kernel else thunk
        for thunk in parse_thunks(path.read_text())
    )


def read_hlo(folder: Path) -> str:
    """The optimised HLO of the largest program that XLA dumped to ``folder``.

    The executable's own text abbreviates what runs asynchronously; this one does not.
    """
    program = dumped_program(folder)
    dumps = list(folder.glob(f"{program}*gpu_after_optimizations.txt"))
    return dumps[0].read_text(errors="replace")


def count(thunks: Sequence[Thunk], kind: str) -> int:
    """How many thunks are of that kind, at any depth."""
    return sum(thunk.kind == kind for thunk in thunks)


def _instruction_names(metadata: str) -> dict[int, str]:
    return {int(number): name for name, number in _INFO.findall(metadata)}
