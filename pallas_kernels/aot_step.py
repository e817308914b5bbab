"""A serving step seen by the compiler: what it launches, copies and moves, and how fast it can be.

This package knows no models: a *provider*, ``module:function`` on the command line, turns a
``StepRequest`` into a ``StepProgram``.  jaxserve's is ``jaxserve.aot_steps:step_program``.
"""

import importlib
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pallas_kernels.aot_compile import TARGET, Compiler, Report
from pallas_kernels.aot_hlo import Instruction
from pallas_kernels.aot_mosaic import MosaicKernel
from pallas_kernels.aot_report import Roofline
from pallas_kernels.aot_thunks import COPY, Thunk

LATE = "late"  # the rows of a step, sampled by a program of their own
MODES = ("decode", "extend", LATE)
TEMP_SHARE = 0.02  # of the weights


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRequest:
    """Which step.  ``context`` is what each row has in the pool, this step's tokens included."""

    model: str  # a published name or the path of a config.json
    mode: str  # one of MODES
    num_rows: int
    num_tokens: int  # of all rows together; num_rows in decode
    pages_per_row: int
    num_pages: int
    context: int
    page_size: int = 16
    num_slots: int = 0  # 0: one per row and the padding slot
    num_layers: int | None = None  # None: the model's
    tp_size: int = 1
    implementation: str = "pallas"
    kv_dtype: str = "bfloat16"

    @property
    def title(self) -> str:
        """One line for a table."""
        depth = "" if self.num_layers is None else f" {self.num_layers} layers"
        title = f"{self.model}{depth} tp={self.tp_size} {self.mode} B={self.num_rows}"
        if self.mode == LATE:
            return title
        tokens = "" if self.mode == "decode" else f" T={self.num_tokens}"
        kv = "" if self.kv_dtype == "bfloat16" else f" kv={self.kv_dtype}"
        return f"{title}{tokens} ctx={self.context}{kv}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFacts:
    """What a provider knows about one device's part of the step without compiling it."""

    num_layers: int
    kv_bytes: int  # of all pools
    state_bytes: int  # of everything donated, the pools included
    weight_bytes: int
    full_weight_bytes: int  # of the model at its full depth
    activation_bytes: int  # of the arrays that no program could do without: see ``temp_limit``
    pool_shape: tuple[int, ...]
    big_sizes: frozenset[int]  # elements of a pool and of each weight matrix
    flops: int  # of matrix products and attention
    attention_flops: int  # the attention's share
    attention_bytes: int  # of keys and values read
    floor_bytes: int  # weights, keys and values that must be read or written once

    @property
    def temp_limit(self) -> int:
        """Bytes of temporaries allowed: 2 % of the model's weights beside its widest activations.

        The logits of many rows over a large vocabulary, and the hidden layer of an MLP over
        thousands of tokens, can be more than 2 % of a small model, or of a shard, on their own.
        """
        return int(TEMP_SHARE * self.full_weight_bytes) + self.activation_bytes


@dataclass(frozen=True, slots=True)
class StepProgram:
    """A step ready to be lowered for the devices of a topology."""

    num_devices: int
    lower: Callable[[Sequence[Any]], Any]  # devices -> jax.stages.Lowered
    facts: StepFacts


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch of a step: its HLO instruction and what it costs at least."""

    kernel: str
    instruction: str
    op_name: str
    text: str
    num_bytes: float
    flops: float


@dataclass(frozen=True, slots=True)
class StepReport:
    """One row of the table of steps."""

    request: StepRequest
    facts: StepFacts
    report: Report
    launches: tuple[Launch, ...]  # of the entry, outside branches
    layer_starts: tuple[int, ...]  # indices into ``launches``: where each layer writes its KV
    big_copies: tuple[str, ...]
    num_copies: int
    num_collectives: int

    @property
    def layers(self) -> tuple[tuple[Launch, ...], ...]:
        """Launches from one layer's KV write up to the next layer's, for each but the last.

        Among the first layer's stands what is computed once for all of them.
        """
        ends = itertools.pairwise(self.layer_starts)
        return tuple(self.launches[start:end] for start, end in ends)

    @property
    def kernels_per_layer(self) -> int:
        """Launches of the layer that has most, the first and the last not counted if others are."""
        return max(map(len, self.layers[1:] or self.layers), default=0)

    @property
    def kernels_of_a_layer(self) -> tuple[Launch, ...]:
        """The launches of a layer in the middle."""
        return self.layers[len(self.layers) // 2] if self.layers else ()

    @property
    def num_bytes(self) -> float:
        """What the program's launches read and write, attention by the context it is asked for."""
        return sum(launch.num_bytes for launch in self.launches) + self.facts.attention_bytes

    def floor_s(self, roofline: Roofline) -> float:
        """The time that no program can beat: each byte once, each product once."""
        return roofline.seconds(self.facts.floor_bytes, self.facts.flops)

    def program_s(self, roofline: Roofline) -> float:
        """The time of this program if each launch reached the roofline, plus the gaps between."""
        launches = sum(roofline.seconds(item.num_bytes, item.flops) for item in self.launches)
        facts = self.facts
        attention = roofline.seconds(facts.attention_bytes, facts.attention_flops)
        return launches + attention + self.report.num_kernels * roofline.gap_s

    @property
    def problems(self) -> tuple[str, ...]:
        """Which laws the step breaks; each says what was found and what is allowed."""
        report, facts = self.report, self.facts
        found = []
        if report.num_graphs != 1 or report.num_outside_graphs:
            found.append(
                f"{report.num_graphs} CUDA graphs and {report.num_outside_graphs} launches outside"
                " them; one graph must hold the step"
            )
        if report.num_whiles:
            found.append(f"{report.num_whiles} while loops; none are allowed")
        if self.big_copies:
            found.append(f"copies of pool or weight size: {', '.join(self.big_copies)}")
        if report.memory.aliased != facts.state_bytes:
            found.append(
                f"{report.memory.aliased} bytes are updated in place; the state has "
                f"{facts.state_bytes} ({facts.kv_bytes} of KV)"
            )
        if report.memory.temp > facts.temp_limit:
            found.append(
                f"{report.memory.temp} bytes of temporaries; {facts.temp_limit} are allowed"
            )
        if report.num_unread:
            found.append(f"{report.num_unread} Mosaic kernels left no dump to read")
        if report.spill_bytes:
            found.append(f"{report.spill_bytes} bytes of registers spilled by Mosaic kernels")
        return tuple(found)


# Time over the floor that the goals allow: decode of one row, of more, and prefill.
GOALS = {"one": 5.6 / 5.0, "decode": 1.15, "extend": 1 / 0.75}


def goal_s(step: StepReport, roofline: Roofline) -> float | None:
    """The time that the step is meant to take, if one is set."""
    if step.request.mode == LATE:
        return None
    is_one = step.request.mode == "decode" and step.request.num_rows == 1
    return step.floor_s(roofline) * GOALS["one" if is_one else step.request.mode]


def row(step: StepReport, roofline: Roofline, *, with_layer: bool = False) -> dict[str, Any]:
    """Figures by the name of their column; ``layer`` lists a middle layer's launches if asked."""
    report, facts = step.report, step.facts
    layer = step.kernels_of_a_layer if with_layer else ()
    return {
        "step": step.request.title,
        "kernels": report.num_kernels,
        "branch_kernels": report.num_branch_kernels,
        "kernels_per_layer": step.kernels_per_layer,
        "mosaic_calls": report.module.num_mosaic_calls,
        "graphs": report.num_graphs,
        "outside_graphs": report.num_outside_graphs,
        "whiles": report.num_whiles,
        "big_copies": list(step.big_copies),
        "copies": step.num_copies,
        "collectives": step.num_collectives,
        "spill_bytes": report.spill_bytes,
        "temp_bytes": report.memory.temp,
        "temp_limit_bytes": facts.temp_limit,
        "temp_share": report.memory.temp / facts.full_weight_bytes,
        "aliased_bytes": report.memory.aliased,
        "state_bytes": facts.state_bytes,
        "kv_bytes": facts.kv_bytes,
        "weight_bytes": facts.weight_bytes,
        "argument_bytes": report.memory.arguments,
        "bytes": step.num_bytes,
        "floor_bytes": facts.floor_bytes,
        "flops": facts.flops,
        "floor_s": step.floor_s(roofline),
        "program_s": step.program_s(roofline),
        "goal_s": goal_s(step, roofline),
        "ptxas": report.ptxas_version,
        "compile_s": round(report.compile_s, 2),
        "problems": list(step.problems),
        "layer": [
            {
                "instruction": item.instruction,
                "text": item.text,
                "op_name": item.op_name,
                "bytes": item.num_bytes,
                "flops": item.flops,
                "roofline_s": roofline.seconds(item.num_bytes, item.flops),
            }
            for item in layer
        ],
    }


def load_provider(name: str) -> Callable[[StepRequest], StepProgram]:
    """Import ``module:function``.

    Raises:
        ValueError: a name that is not of that form, or nothing there that can be called.
    """
    module, _, function = name.partition(":")
    if not module or not function:
        raise ValueError(f"--provider must be module:function; got {name!r}")
    found = vars(importlib.import_module(module)).get(function)
    if not callable(found):
        raise ValueError(f"--provider {name}: {module} has no function {function!r}")
    return found


def compile_step(
    request: StepRequest,
    provider: Callable[[StepRequest], StepProgram],
    *,
    target: Path = TARGET,
    seen: dict[str, MosaicKernel] | None = None,
    **options: Any,
) -> StepReport:
    """Compile a step for ``target`` and read it; ``options`` go to ``Compiler.compile_lowered``.

    ``seen`` as in ``Compiler``: pass one dict for all steps of a process.
    """
    program = provider(request)
    compiler = Compiler(num_devices=program.num_devices, target=target, seen=seen)
    lowered = program.lower(compiler.devices)
    return analyse(request, program.facts, compiler.compile_lowered(lowered, **options))


def analyse(request: StepRequest, facts: StepFacts, report: Report) -> StepReport:
    """Read a compiled step."""
    module = report.module
    known = {  # and what it reaches: names are unique in a module
        item.name: item for part in module.launched_computations for item in part.instructions
    }
    thunks = [thunk for thunk in report.thunks if thunk.is_kernel and not thunk.is_conditional]
    launches = tuple(_launch(thunk, known, report, facts.pool_shape) for thunk in thunks)
    big = module.moved(facts.big_sizes)
    return StepReport(
        request=request,
        facts=facts,
        report=report,
        launches=launches,
        layer_starts=_layer_starts(launches, report, facts),
        big_copies=tuple(f"{item.name} ({item.text})" for item in big),
        num_copies=sum(
            thunk.kind == COPY
            or (thunk.instruction in known and module.moves_only(known[thunk.instruction]))
            for thunk in thunks
        ),
        num_collectives=sum(
            item.opcode.startswith(("all-", "reduce-scatter", "collective"))
            for item in module.launches
        ),
    )


def _launch(
    thunk: Thunk,
    entry: dict[str, Instruction],
    report: Report,
    pool_shape: tuple[int, ...],
) -> Launch:
    instruction = entry.get(thunk.instruction)
    if instruction is None:  # XLA added it on its own
        return Launch(thunk.kernel, thunk.instruction, "", thunk.kind, 0.0, 0.0)
    num_bytes = report.module.bytes_moved(instruction, entry)
    if instruction.is_mosaic:  # it reads a few pages of a pool, not the pool
        touched = [instruction, *(entry[name] for name in instruction.operands)]
        pools = [array for item in touched for array in item.arrays if array[1] == pool_shape]
        num_bytes -= sum(Instruction("", "", (pool,), (), "", False).num_bytes for pool in pools)
    return Launch(
        kernel=thunk.kernel,
        instruction=instruction.name,
        op_name=instruction.op_name,
        text=instruction.text,
        num_bytes=num_bytes,
        flops=report.module.flops(instruction),
    )


def _layer_starts(
    launches: tuple[Launch, ...], report: Report, facts: StepFacts
) -> tuple[int, ...]:
    """Where each layer writes its keys: launches that take a pool as it came into the step.

    Layers have two pools, written by one launch or by two.
    """
    position = {launch.instruction: index for index, launch in enumerate(launches)}
    source: dict[str, str] = {}  # instruction -> the pool parameter that it is a view of
    writes: dict[str, int] = {}  # pool parameter -> the launch that takes it first
    for item in report.module.entry.instructions:
        if item.opcode == "parameter" and item.arrays and item.arrays[0][1] == facts.pool_shape:
            source[item.name] = item.name
        for name in item.operands:
            pool = source.get(name)
            if pool is None:
                continue
            if item.opcode == "bitcast":
                source[item.name] = pool
            elif item.name in position:
                writes.setdefault(pool, position[item.name])
    ordered = sorted(writes.values())
    pools_per_layer = len(ordered) / facts.num_layers if facts.num_layers else 0
    if pools_per_layer < 1 or not math.isclose(pools_per_layer % 1, 0):
        return ()
    return tuple(ordered[:: int(pools_per_layer)])
