"""What a comparison found: medians, ratios, and a markdown table with all that is needed to
repeat it.
"""

import datetime
import os
import platform
import re
import shlex
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Samples = Sequence[dict[str, Any]]
OURS = "jaxserve"


def medians(samples: Samples, metric: str = "output_throughput") -> dict[str, dict[int, float]]:
    """Return engine -> concurrency -> median of ``metric`` over the rounds, in sample order."""
    values: dict[str, dict[int, list[float]]] = {}
    for sample in samples:
        if sample.get(metric) is not None:
            of_engine = values.setdefault(sample["engine"], {})
            of_engine.setdefault(sample["concurrency"], []).append(sample[metric])
    return {
        engine: {size: statistics.median(numbers) for size, numbers in by_size.items()}
        for engine, by_size in values.items()
    }


def is_ours(engine: str) -> bool:
    return engine.startswith(OURS)


def ratios(table: dict[str, dict[int, float]]) -> dict[int, float]:
    """Return concurrency -> best of ours / best of the peers, where both were measured."""
    found = {}
    for size in sorted({size for by_size in table.values() for size in by_size}):
        ours = [row[size] for name, row in table.items() if is_ours(name) and size in row]
        peers = [row[size] for name, row in table.items() if not is_ours(name) and size in row]
        if ours and peers:
            found[size] = max(ours) / max(peers)
    return found


def markdown(report: dict[str, Any]) -> str:
    """Return the report as markdown: one table per section, then how it was made."""
    lines: list[str] = []
    for section in report["sections"]:
        lines += _section(section, report["samples"])
    about = {
        "command": f"`{report['command']}`",
        "commit": report["commit"],
        "date": report["date"],
        "hardware": report["hardware"],
        "rounds": report["rounds"],
    }
    about |= {
        engine: ", ".join(f"{name} {version}" for name, version in versions.items())
        for engine, versions in report["versions"].items()
        if versions
    }
    lines += [f"- {key}: {value}" for key, value in about.items()]
    lines += [f"- failed: {failure}" for failure in report["failures"]]
    return "\n".join(lines) + "\n"


def _section(section: dict[str, Any], samples: Samples) -> list[str]:
    mine = [sample for sample in samples if sample["section"] == section["name"]]
    table = medians(mine)
    sizes = section["concurrencies"]
    start_ups = medians(mine, "startup_s")
    gaps = medians(mine, "p99_itl_ms")
    shape = f"{section['input_len']} tokens in, {section['output_len']} out"
    sampling = f"temperature {section['temperature']:g}" if section["temperature"] else "greedy"
    lines = [f"### {section['name']}: {shape}, {sampling}, output tok/s", ""]
    header = ["engine", *(f"concurrency {size}" for size in sizes)]
    header += [f"p99 ITL at {sizes[-1]} (ms)", "ready after (s)"]
    lines += [_row(header), _row(["---"] * len(header))]
    for engine, row in table.items():
        ready = next(iter(start_ups.get(engine, {}).values()), None)
        gap = gaps.get(engine, {}).get(sizes[-1])
        lines.append(
            _row([engine, *(_number(row.get(s)) for s in sizes), _number(gap), _number(ready)])
        )
    found = ratios(table)
    if found:
        shown = [f"{found[size]:.2f}×" if size in found else "–" for size in sizes]
        lines.append(_row([f"{OURS} / best peer", *shown, "", ""]))
    return [*lines, ""]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}" if value < 1000 else f"{value:,.0f}"


def shown_command(argv: Sequence[str]) -> str:
    """Return the command line without the folders of this machine."""
    return re.sub(r"(?<![\w.~])/(?:[^\s/'\"=]+/)+", "…/", shlex.join(["python", *argv]))


def git_commit(folder: Path) -> str:
    """Return the commit of ``folder``, marked where the working tree differs from it."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    out = subprocess.run(command, capture_output=True, text=True, check=False)
    return out.stdout.strip() or "unknown"


def today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def hardware() -> str:
    """Return cores, processor and the instruction sets that decide how fast matmuls are."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"model name\s*: (.*)", text)
    flags = set((re.search(r"flags\s*: (.*)", text) or [""])[0].split())
    units = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags]
    name = model[1] if model else platform.processor() or platform.machine()
    return f"{os.cpu_count()} × {name} ({', '.join(units) or 'no vector units known'})"
