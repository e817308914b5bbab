"""Compile a program for a GPU that is not there, and read what came of it.

    compiler = Compiler()                      # an H100; Compiler(num_devices=8) for eight
    x = compiler.spec((64, 128), jnp.bfloat16)
    report = compiler.compile(jax.jit(f), x)   # Report: kernels, graphs, copies, memory, Mosaic
    print(report.summary())

Needs jax with its CUDA plugin (not its heavy libraries) and nvcc's ptxas; ``scripts/aot`` makes
such an environment.  Set ``JAX_PLATFORMS=cpu JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1`` before jax is
imported: without the second the plugin refuses to register where there is no GPU.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from pallas_kernels.aot_hlo import Module
from pallas_kernels.aot_mosaic import MosaicKernel, mosaic_dumps, read_mosaic_dumps
from pallas_kernels.aot_thunks import COMMAND_BUFFER, WHILE, Thunk, count, read_hlo, read_thunks

TARGET = Path(__file__).parent / "targets" / "h100.txtpb"
# All kinds of calls: one CUDA graph then holds a whole step, with its branches and loops.
# XLA's own default leaves out WHILE and COLLECTIVES.
COMMAND_BUFFER_KINDS = (
    "FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,COLLECTIVES,CONDITIONAL,WHILE,DYNAMIC_SLICE_FUSION"
)
_KERNEL_HASH = re.compile(r'kernel_hash = "((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on one device."""

    arguments: int
    outputs: int
    aliased: int
    temp: int


@dataclass(frozen=True, slots=True)
class Report:
    """What one program became."""

    name: str
    compile_s: float
    thunks: tuple[Thunk, ...]
    mosaic: tuple[MosaicKernel, ...]
    ptxas_version: str
    num_unread: int  # Mosaic kernels of the program whose dumps are missing; should be 0
    memory: Memory
    module: Module

    @property
    def num_kernels(self) -> int:
        """Launches outside branches: what every run pays."""
        return sum(thunk.is_kernel and not thunk.is_conditional for thunk in self.thunks)

    @property
    def num_branch_kernels(self) -> int:
        """Launches that happen only where a branch is taken, all branches together."""
        return sum(thunk.is_kernel and thunk.is_conditional for thunk in self.thunks)

    @property
    def num_graphs(self) -> int:
        """CUDA graphs."""
        return count(self.thunks, COMMAND_BUFFER)

    @property
    def num_whiles(self) -> int:
        """Loops whose trip count the device decides, or that XLA did not unroll."""
        return count(self.thunks, WHILE)

    @property
    def num_outside_graphs(self) -> int:
        """Launches that the host makes one by one."""
        return sum(thunk.is_kernel and not thunk.is_in_graph for thunk in self.thunks)

    @property
    def spill_bytes(self) -> int:
        """Of all Mosaic kernels together."""
        return sum(kernel.spill_bytes for kernel in self.mosaic)

    def summary(self) -> str:
        """A few lines for a terminal."""
        lines = [
            f"{self.name}: {self.num_kernels} kernels (+{self.num_branch_kernels} in branches), "
            f"{self.module.num_mosaic_calls} Mosaic calls, {self.num_graphs} graphs, "
            f"{self.num_whiles} whiles; temp {self.memory.temp:,} B, aliased "
            f"{self.memory.aliased:,} B, arguments {self.memory.arguments:,} B; "
            f"compiled in {self.compile_s:.1f} s"
        ]
        for kernel in self.mosaic:
            lines.append(
                f"  {kernel.name}: {kernel.registers} registers, {kernel.spill_bytes} B spilled, "
                f"{kernel.shared_bytes:,} B shared, {kernel.threads} threads, grid {kernel.grid}, "
                f"HGMMA {kernel.has_hgmma}, UTMALDG {kernel.has_utmaldg}"
            )
        return "\n".join(lines)


def use_installed_ptxas() -> str:
    """Put the assembler of this environment first on PATH, and say which one is used.

    XLA takes the first ``ptxas`` that it finds; a CUDA toolkit of the machine may be another
    version, with other registers and spills.
    """
    found = importlib.util.find_spec("nvidia")
    folders = [Path(folder) for folder in (found.submodule_search_locations or ())] if found else []
    installed = [str(path) for folder in folders for path in folder.glob("cu*/bin")]
    path = os.environ.get("PATH", os.defpath).split(os.pathsep)
    os.environ["PATH"] = os.pathsep.join([*installed, *(x for x in path if x not in installed)])
    ptxas = shutil.which("ptxas")
    if ptxas is None:
        raise FileNotFoundError(
            "no ptxas in this environment nor on PATH: run scripts/aot, or install nvidia-cuda-nvcc"
        )
    about = subprocess.run([ptxas, "--version"], capture_output=True, text=True, check=True)
    version = re.search(r"V([\d.]+)", about.stdout)
    return version[1] if version else "unknown"


class Compiler:
    """Compiles for the devices of a target description; an H100 unless another is given.

    One process may make many; compile from one thread at a time, since Mosaic's dumps are
    steered by environment variables.
    """

    def __init__(
        self,
        *,
        num_devices: int = 1,
        target: Path = TARGET,
        seen: dict[str, MosaicKernel] | None = None,
    ) -> None:
        """``seen`` holds the kernels of this process by hash: share it between compilers.

        In jax 0.10 Mosaic compiles, and dumps, each kernel once per process.
        """
        # A compilation cache that answered would leave nothing to read.
        jax.config.update("jax_enable_compilation_cache", False)
        self.topology = topologies.get_topology_desc(
            platform="cuda", target_config=target.read_text(), topology=f"1x1x{num_devices}"
        )
        self.ptxas_version = use_installed_ptxas()
        self._seen = {} if seen is None else seen

    @property
    def devices(self) -> Sequence[jax.Device]:
        """The devices to put shardings on."""
        return self.topology.devices

    def spec(self, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        """An argument on the first device."""
        sharding = SingleDeviceSharding(self.devices[0])
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    def place(self, tree: Any) -> Any:
        """``tree`` with every array or spec as an argument on the first device."""
        return jax.tree.map(lambda leaf: self.spec(leaf.shape, leaf.dtype), tree)

    def compile(
        self,
        jitted: Callable[..., Any],
        *args: Any,
        name: str = "",
        folder: Path | None = None,
    ) -> Report:
        """Lower and compile ``jitted`` for arguments that are specs on ``devices``.

        Args:
            jitted: what ``jax.jit`` returned.
            *args: trees of ``jax.ShapeDtypeStruct`` with shardings on ``devices``.
            name: of the report.
            folder: keeps the dumps (HLO, thunks, PTX, SASS); default: a folder that is deleted.
        """
        lowered = jitted.trace(*args).lower(lowering_platforms=("cuda",))
        return self.compile_lowered(lowered, name=name, folder=folder)

    def compile_lowered(
        self, lowered: Any, *, name: str = "", folder: Path | None = None
    ) -> Report:
        """``compile`` for what has been lowered already."""
        if folder is None:
            with tempfile.TemporaryDirectory(prefix="aot-") as scratch:
                return self.compile_lowered(lowered, name=name, folder=Path(scratch))
        folder.mkdir(parents=True, exist_ok=True)
        options = {
            "xla_dump_to": str(folder),
            "xla_dump_hlo_as_text": True,
            "xla_gpu_enable_command_buffer": COMMAND_BUFFER_KINDS,
        }
        started = time.monotonic()
        with mosaic_dumps(folder / "mosaic"):
            compiled = lowered.compile(compiler_options=options)
        compile_s = time.monotonic() - started
        memory = compiled.memory_analysis()
        text = read_hlo(folder)
        kernels = self._mosaic_kernels(text, read_mosaic_dumps(folder / "mosaic"))
        return Report(
            name=name,
            compile_s=compile_s,
            thunks=read_thunks(folder),
            mosaic=tuple(kernel for kernel in kernels if kernel is not None),
            ptxas_version=self.ptxas_version,
            num_unread=kernels.count(None),
            memory=Memory(
                memory.argument_size_in_bytes,
                memory.output_size_in_bytes,
                memory.alias_size_in_bytes,
                memory.temp_size_in_bytes,
            ),
            module=Module(text),
        )

    def _mosaic_kernels(self, text: str, dumped: list[MosaicKernel]) -> list[MosaicKernel | None]:
        """The program's kernels: those just compiled, and those of programs before."""
        hashes = dict.fromkeys(_KERNEL_HASH.findall(text))
        new = [value for value in hashes if value not in self._seen]
        if len(dumped) >= len(hashes):
            new = list(hashes)
        self._seen |= dict(zip(new, dumped, strict=False))
        return [self._seen.get(value) for value in hashes]
