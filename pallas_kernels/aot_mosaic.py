"""What the Mosaic GPU compiler leaves behind for each kernel: ptxas' log, SASS, the launch.

Mosaic reads its environment variables anew for every program, so each program gets a folder of
its own without a process of its own.
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_DUMPS: Mapping[str, str] = dict.fromkeys(
    ("MOSAIC_GPU_DUMP_PTX", "MOSAIC_GPU_DUMP_PTXAS", "MOSAIC_GPU_DUMP_SASS"), "1"
)
_FOLDER = "MOSAIC_GPU_DUMP_TO"
_INDEX = re.compile(r"(.+)_(\d+)\.ptxas$")


@dataclass(frozen=True, slots=True)
class MosaicKernel:
    """One compiled Mosaic kernel.  Sizes in bytes; ``spill_bytes`` is stores plus loads."""

    name: str
    registers: int
    spill_bytes: int
    stack_bytes: int
    shared_bytes: int
    threads: int
    grid: tuple[int, ...]
    has_hgmma: bool
    has_utmaldg: bool


@contextmanager
def mosaic_dumps(folder: Path) -> Iterator[None]:
    """Let Mosaic write what it compiles to ``folder``; the environment is put back after."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {_FOLDER: str(folder), **_DUMPS}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


def read_mosaic_dumps(folder: Path) -> list[MosaicKernel]:
    """The kernels whose dumps lie in ``folder``, in the order in which they were compiled."""
    found = [(_INDEX.match(path.name), path) for path in folder.glob("*.ptxas")]
    named = [(match, path) for match, path in found if match]
    named.sort(key=lambda pair: int(pair[0][2]))
    return [_read_kernel(match[1], path) for match, path in named]


def _read_kernel(name: str, ptxas: Path) -> MosaicKernel:
    log = ptxas.read_text(errors="replace")
    sass = _text_beside(ptxas, ".sass_ctrl") or _text_beside(ptxas, ".sass")
    shared_bytes, threads, grid = parse_launch(_text_beside(ptxas, ".mlir-passes.log"))
    registers, spill_bytes, stack_bytes = parse_ptxas(log)
    return MosaicKernel(
        name=name,
        registers=registers,
        spill_bytes=spill_bytes,
        stack_bytes=stack_bytes,
        shared_bytes=shared_bytes,
        threads=threads,
        grid=grid,
        has_hgmma="HGMMA" in sass,
        has_utmaldg="UTMALDG" in sass,
    )


def parse_ptxas(log: str) -> tuple[int, int, int]:
    """Registers per thread, bytes of spill stores and loads, bytes of stack: ``ptxas -v``.

    Raises:
        ValueError: text that is not such a log.
    """
    registers = re.search(r"Used (\d+) registers", log)
    frame = re.search(
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log
    )
    if not registers or not frame:
        raise ValueError(
            f"not a log of ptxas -v: {log[:200]!r}; run with the nvcc that scripts/aot installs"
        )
    return int(registers[1]), int(frame[2]) + int(frame[3]), int(frame[1])


def parse_launch(passes: str) -> tuple[int, int, tuple[int, ...]]:
    """Shared bytes, threads per block and grid of the launch in Mosaic's pass log; 0 if absent.

    The log has the kernel after every pass; sizes are constants, which MLIR names by value.
    """
    launch = re.search(
        r"gpu\.launch[^\n]*? blocks\([^)]*\) in \(([^)]*)\) threads\([^)]*\) in \(([^)]*)\)"
        r" dynamic_shared_memory_size %c(\d+)_i32",
        passes,
    )
    if not launch:
        return 0, 0, ()
    grid = tuple(int(size) for size in re.findall(r"= %c(\d+)", launch[1]))
    threads = 1
    for size in re.findall(r"= %c(\d+)", launch[2]):
        threads *= int(size)
    return int(launch[3]), threads, grid


def _text_beside(path: Path, suffix: str) -> str:
    beside = path.with_suffix(suffix)
    return beside.read_text(errors="replace") if beside.is_file() else ""
