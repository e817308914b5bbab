"""The goals of a run: what was measured, the floor under it, and whether the goal is reached.

A floor is what the work itself costs at this machine's measured ceilings: bytes over the rate of
a large copy, FLOPs over the rate of a large bf16 matrix product.
"""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

Record = dict[str, Any]
# Where a ceiling could not be measured: an H100 80 GB's usual ones.
USUAL_COPY, USUAL_MATMUL = 3.0e12, 7.98e14
DECODE_SHARE, EXTEND_FLOPS = 0.90, 600e12
ONE_ROW_S, MANY_ROWS_FACTOR, PREFILL_SHARE = 5.6e-3, 1.15, 0.75
OFFLINE_TOKENS_PER_S = 16_215  # SGLang's published figure on an H100
HOST_S = 1e-3
HOST_ROWS = 256


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Rates that nothing on this machine exceeds: bytes and FLOPs per second."""

    copy: float
    matmul: float
    is_measured: bool


@dataclass(frozen=True, slots=True)
class Goal:
    """One line of the table; ``reached`` is None where nothing was measured."""

    what: str
    measured: str
    floor: str
    goal: str
    reached: bool | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def ok_values(records: Iterable[Record], module: str) -> list[dict[str, Any]]:
    """The values of a module's cases that went well."""
    return [
        record["values"]
        for record in records
        if record.get("module") == module and record.get("status") == "ok"
    ]


def ceilings_of(records: Sequence[Record]) -> Ceilings:
    """The best of jax's and PyTorch's."""
    facts = [*ok_values(records, "facts_jax"), *ok_values(records, "facts_torch")]
    copies = [values["bytes_per_s"] for values in facts if "bytes_per_s" in values]
    matmuls = [values["flops_per_s"] for values in facts if "flops_per_s" in values]
    return Ceilings(
        max(copies, default=USUAL_COPY),
        max(matmuls, default=USUAL_MATMUL),
        bool(copies and matmuls),
    )


def goals_of(records: Sequence[Record], ceilings: Ceilings) -> list[Goal]:
    """Every goal, in the order of the table they come from."""
    kernels = [*ok_values(records, "time_kernels"), *ok_values(records, "time_torch")]
    steps = ok_values(records, "time_model")
    return [
        _decode_attention(kernels, ceilings),
        *_extend_attention(kernels, ceilings),
        _one_row(steps, ceilings),
        _many_rows(steps, ceilings),
        _prefill(steps, ceilings),
        _offline(ok_values(records, "time_offline")),
        _host(steps),
    ]


def _nothing(what: str, goal: str) -> Goal:
    return Goal(what, "–", "–", goal, None)


def _decode_attention(kernels: Sequence[Record], ceilings: Ceilings) -> Goal:
    what = "decode attention, ctx ≥ 2k, B ≥ 16, G 4–8, H 128"
    goal = f"≥ {DECODE_SHARE:.0%} of copy bandwidth"
    shares = [
        k["kv_bytes"] / k["median_s"] / ceilings.copy
        for k in kernels
        if k["op"] == "decode" and k["side"] == "ours" and k["context"] >= 2048
        and k["rows"] >= 16 and 4 <= k["group"] <= 8 and k["head_dim"] == 128
    ]  # fmt: skip
    if not shares:
        return _nothing(what, goal)
    measured = (f"{min(shares):.0%} worst, {statistics.median(shares):.0%} median of "
                f"{len(shares)} shapes")  # fmt: skip
    floor = f"KV bytes ÷ {ceilings.copy / 1e12:.2f} TB/s"
    return Goal(what, measured, floor, goal, min(shares) >= DECODE_SHARE)


def _extend_attention(kernels: Sequence[Record], ceilings: Ceilings) -> list[Goal]:
    what = "extend attention, 8k causal, G 4, H 128, page 16"
    against = f"{what}, against cuDNN"
    sides = {
        k["side"]: k["flops"] / k["median_s"]
        for k in kernels
        if k["op"] == "extend" and k["rows"] == 1 and k["context"] == 8192 and k["group"] == 4
        and "page16" in k["shape"]
    }  # fmt: skip
    goal, goal_ratio = f"≥ {EXTEND_FLOPS / 1e12:.0f} TFLOP/s", "≥ 1.00×"
    if "ours" not in sides:
        return [_nothing(what, goal), _nothing(against, goal_ratio)]
    ours = sides["ours"]
    floor = f"FLOPs ÷ {ceilings.matmul / 1e12:.0f} TFLOP/s"
    lines = [Goal(what, f"{ours / 1e12:.3g} TFLOP/s", floor, goal, ours >= EXTEND_FLOPS)]
    cudnn = max((rate for side, rate in sides.items() if "cuDNN" in side), default=None)
    if cudnn is None:
        return [*lines, _nothing(against, goal_ratio)]
    measured = f"{ours / cudnn:.2f}× of {cudnn / 1e12:.3g} TFLOP/s"
    return [*lines, Goal(against, measured, "–", goal_ratio, ours >= cudnn)]


def _step(steps: Sequence[Record], mode: str, rows: int, tokens: int) -> Record | None:
    found = [s for s in steps if s.get("mode") == mode and s["backend"] == "pallas"
             and s["rows"] == rows and s["tokens"] == tokens]  # fmt: skip
    return found[0] if found else None


def _one_row(steps: Sequence[Record], ceilings: Ceilings) -> Goal:
    what, goal = "one decode step, Llama-3.1-8B bf16, B = 1", f"≤ {ONE_ROW_S * 1e3:.1f} ms"
    step = _step(steps, "decode", 1, 1024)
    if step is None:
        return _nothing(what, goal)
    seconds, floor_s = step["median_s"], step["bytes"] / ceilings.copy
    measured = f"{seconds * 1e3:.2f} ms ({1 / seconds:.0f} tok/s)"
    return Goal(what, measured, f"{floor_s * 1e3:.2f} ms", goal, seconds <= ONE_ROW_S)


def _many_rows(steps: Sequence[Record], ceilings: Ceilings) -> Goal:
    what, goal = "same, B = 64, ctx 1k", f"≤ {MANY_ROWS_FACTOR}× floor"
    step = _step(steps, "decode", 64, 1024)
    if step is None:
        return _nothing(what, goal)
    floor_s = step["bytes"] / ceilings.copy
    factor = step["median_s"] / floor_s
    measured = f"{step['median_s'] * 1e3:.2f} ms = {factor:.2f}×"
    return Goal(what, measured, f"{floor_s * 1e3:.2f} ms", goal, factor <= MANY_ROWS_FACTOR)


def _prefill(steps: Sequence[Record], ceilings: Ceilings) -> Goal:
    what, goal = "prefill 8192 tokens, 8B", f"≥ {PREFILL_SHARE:.0%} of the matmul rate"
    step = _step(steps, "extend", 1, 8192)
    if step is None:
        return _nothing(what, goal)
    floor_s = step["flops"] / ceilings.matmul
    share = floor_s / step["median_s"]
    measured = f"{step['median_s'] * 1e3:.0f} ms = {share:.0%}"
    return Goal(what, measured, f"{floor_s * 1e3:.0f} ms", goal, share >= PREFILL_SHARE)


def _offline(waves: Sequence[Record]) -> Goal:
    what = "offline throughput, 8B, 1000 ShareGPT-like prompts"
    goal = f"> {OFFLINE_TOKENS_PER_S:,} tok/s"
    rated = [wave for wave in waves if wave.get("prompts", 0) > 64]
    if not rated:
        return _nothing(what, goal)
    best = max(rated, key=lambda wave: wave["prompts"])
    measured = (
        f"{best['output_throughput']:,.0f} tok/s out, {best['total_throughput']:,.0f} in and out, "
        f"{best['prompts']} prompts, {best['backend']}"
    )
    # The stricter reading: the published figure does not say which tokens it counts.
    return Goal(what, measured, "–", goal, best["output_throughput"] > OFFLINE_TOKENS_PER_S)


def _host(steps: Sequence[Record]) -> Goal:
    what, goal = f"host time per decode step at {HOST_ROWS} rows", f"≤ {HOST_S * 1e3:.0f} ms"
    launches = [s["host_launch_s"] for s in steps
                if s.get("mode") == "decode" and s.get("bucket_rows") == HOST_ROWS]  # fmt: skip
    turns = [s for s in steps if s.get("rows") == HOST_ROWS and "schedule_s" in s]
    if not launches or not turns:
        return _nothing(what, goal)
    scheduler = turns[0]["schedule_s"] + turns[0]["process_s"]
    total = launches[0] + scheduler
    measured = (
        f"{total * 1e3:.2f} ms (launch {launches[0] * 1e3:.2f}, scheduler {scheduler * 1e3:.2f})"
    )
    return Goal(what, measured, "hidden behind the device", goal, total <= HOST_S)
