"""From records to a table in markdown and to one JSON file."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpu.goals import Ceilings, Goal, ceilings_of, goals_of, ok_values
from gpu.settings import WORKERS

Record = dict[str, Any]
WORST_SHOWN = 12
ERROR_CHARS = 300
BADNESS = {"failed": 0, "wrong": 1, "unsupported": 2, "skipped": 3, "ok": 4}
VERDICT = {True: "yes", False: "**no**", None: "–"}


def write(path: Path, about: dict[str, Any], records: Sequence[Record]) -> None:
    """Write ``path``.json with every sample and ``path``.md with the table."""
    ceilings = ceilings_of(records)
    goals = goals_of(records, ceilings)
    whole = {
        "about": about,
        "ceilings": asdict(ceilings),
        "goals": [goal.as_dict() for goal in goals],
        "records": list(records),
    }
    text = json.dumps(_finite(whole), indent=1, allow_nan=False)
    beside(path, ".json").write_text(text + "\n", "utf-8")
    beside(path, ".md").write_text(markdown(about, records, ceilings, goals), "utf-8")


def beside(path: Path, suffix: str) -> Path:
    """``path`` with ``suffix`` behind its name, dots and all."""
    return path.with_name(path.name + suffix)


def _finite(value: Any) -> Any:
    """``value`` with numbers that JSON cannot hold written out."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    is_odd = isinstance(value, float) and not math.isfinite(value)
    return str(value) if is_odd else value


def markdown(
    about: dict[str, Any], records: Sequence[Record], ceilings: Ceilings, goals: Sequence[Goal]
) -> str:
    """The whole report: goals, parts, errors, kernel times, steps, facts."""
    lines = [f"# {about['title']}", ""]
    if about["is_dry_run"]:
        lines += ["A dry run: the same path on the CPU at tiny sizes. No number here means "
                  "anything.", ""]  # fmt: skip
    source = "measured" if ceilings.is_measured else "NOT measured here, an H100's usual"
    lines += [
        f"Ceilings, {source}: copy {ceilings.copy / 1e12:.3g} TB/s (bytes read and written), "
        f"bf16 matmul {ceilings.matmul / 1e12:.4g} TFLOP/s.",
        "",
        *_table(("goal", "measured", "floor", "wanted", "reached"), [
            (g.what, g.measured, g.floor, g.goal, VERDICT[g.reached]) for g in goals
        ]),
        "## Parts", "", *_parts(records),
        "## Correctness", "", *_correctness(records),
        "## Kernels", "", *_kernels(records, ceilings),
        "## Steps", "", *_steps(records, ceilings),
        "## What did not go well", "", *_troubles(records),
        "## How", "", *_about(about, records),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    if not rows:
        return ["Nothing was measured.", ""]
    cells = [header, ["---"] * len(header), *rows]
    return [*(f"| {' | '.join(str(c).replace('|', '/') for c in row)} |" for row in cells), ""]


def ends_of(records: Sequence[Record], part: str) -> list[Record]:
    return [r for r in records if r.get("part") == part and r["kind"] == "end"]


def counts(records: Sequence[Record], part: str) -> dict[str, int]:
    """Status -> number of the part's cases that ended so."""
    found: dict[str, int] = {}
    for record in ends_of(records, part):
        found[record["status"]] = found.get(record["status"], 0) + 1
    return dict(sorted(found.items(), key=lambda item: BADNESS[item[0]]))


def _parts(records: Sequence[Record]) -> list[str]:
    rows = []
    for part in dict.fromkeys(worker.part for worker in WORKERS):
        found = counts(records, part)
        seconds = sum(r.get("seconds", 0) for r in records
                      if r.get("part") == part and r["kind"] == "worker")  # fmt: skip
        shown = ", ".join(f"{count} {status}" for status, count in found.items()) or "not run"
        rows.append((part, shown, f"{seconds:.0f}"))
    return _table(("part", "cases", "seconds"), rows)


def _correctness(records: Sequence[Record]) -> list[str]:
    """The worst first: by status, then by the error over its limit."""

    def badness(record: Record) -> tuple[int, float]:
        values = record["values"]
        ratio = values["error"] / values["limit"] if values.get("limit") else 0.0
        return BADNESS[record["status"]], -float(ratio)

    ends = [r for r in ends_of(records, "correctness") if r["status"] != "skipped"]
    rows = []
    for record in sorted(ends, key=badness)[:WORST_SHOWN]:
        v = record["values"]
        rows.append((record["case"], record["status"], _number(v.get("error")),
                     _number(v.get("worst_query")), _number(v.get("limit"))))  # fmt: skip
    intro = [
        "‖out − ref‖ / ‖ref‖ against f64 on the host; fresh random arguments, NaN and infinities "
        "in all pages and tails that nobody owns, free device memory full of NaN, then "
        "repeated runs equal to the bit. The worst cases:", "",
    ]  # fmt: skip
    header = ("case", "status", "error", "worst query", "limit")
    return [*intro, *_table(header, rows)] if rows else _table(header, rows)


def _kernels(records: Sequence[Record], ceilings: Ceilings) -> list[str]:
    found = [*ok_values(records, "time_kernels"), *ok_values(records, "time_torch")]
    ours = {v["shape"]: v["median_s"] for v in found if v["side"] == "ours"}
    order = {shape: index for index, shape in enumerate(dict.fromkeys(v["shape"] for v in found))}
    rows = []
    for v in sorted(found, key=lambda v: order[v["shape"]]):
        is_decode = v["op"] == "decode"
        rate = (v["kv_bytes"] if is_decode else v["flops"]) / v["median_s"] / 1e12
        share = rate * 1e12 / (ceilings.copy if is_decode else ceilings.matmul)
        base = ours.get(v["shape"])
        rows.append((v["shape"], v["side"], f"{v['median_s'] * 1e6:.1f}",
                     f"{rate:.3g} {'TB/s' if is_decode else 'TFLOP/s'}", f"{share:.0%}",
                     f"{v['median_s'] / base:.2f}×" if base else "–"))  # fmt: skip
    header = ("call", "by", "µs", "rate", "of ceiling", "time / ours")
    return _table(header, rows)


def _steps(records: Sequence[Record], ceilings: Ceilings) -> list[str]:
    rows = []
    for record in [*ends_of(records, "model"), *ends_of(records, "offline")]:
        v = record["values"]
        if record["status"] != "ok":
            continue
        if "mode" in v:
            floor = v["bytes"] / ceilings.copy if v["bytes"] else v["flops"] / ceilings.matmul
            rows.append((record["case"], f"{v['median_s'] * 1e3:.3f} ms", f"{floor * 1e3:.3f} ms",
                         f"{v['median_s'] / floor:.2f}×",
                         f"{v['host_launch_s'] * 1e3:.3f} ms"))  # fmt: skip
        elif "total_throughput" in v:
            rows.append((f"offline, {v['prompts']} prompts, {v['backend']}",
                         f"{v['output_throughput']:,.0f} tok/s out, "
                         f"{v['total_throughput']:,.0f} in all", "–", "–", "–"))  # fmt: skip
    return _table(("step", "measured", "floor", "time / floor", "host"), rows)


def _troubles(records: Sequence[Record]) -> list[str]:
    rows = [
        (r["part"], r["case"], r["status"], " ".join(r["error"].split())[:ERROR_CHARS])
        for r in records
        if r["kind"] == "end" and r["status"] != "ok"
    ]
    rows.sort(key=lambda row: BADNESS[row[2]])
    return _table(("part", "case", "status", "why"), rows) if rows else ["Nothing.", ""]


def _about(about: dict[str, Any], records: Sequence[Record]) -> list[str]:
    facts: dict[str, Any] = next(iter(ok_values(records, "facts_jax")), {})
    packages = {name: version for name, version in facts.get("packages", {}).items() if version}
    shown = {
        "command": f"`{about['command']}`",
        "commit": about["commit"],
        "date": about["date"],
        "seed": about["seed"],
        "seconds": about["seconds"],
        "hardware": facts.get("nvidia_smi") if not about["is_dry_run"] else about["hardware"],
        "python": facts.get("python"),
        "packages": ", ".join(f"{name} {version}" for name, version in packages.items()),
        "timing": "median over samples of many queued calls, the host waiting once per sample; "
        "kernels in chains of calls inside one program, other pages in each, PyTorch's as "
        "replays of a CUDA graph",
    }
    return [*(f"- {key}: {value}" for key, value in shown.items() if value), ""]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2e}"
