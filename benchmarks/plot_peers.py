"""Draw the bars of a comparison from the JSON that bench_peers.py wrote.

python benchmarks/plot_peers.py RESULT.json PLOT.png
"""

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from peer_report import is_ours, medians

OUR_COLOR = "#d1495b"
PEER_COLORS = ("#30638e", "#7a9cc6", "#00798c", "#66a182", "#8d96a3", "#edae49")


def spread(samples: list[dict[str, Any]], engine: str, size: int) -> tuple[float, float]:
    """Return the lowest and the highest throughput of ``engine`` at concurrency ``size``."""
    values = [
        sample["output_throughput"]
        for sample in samples
        if (sample["engine"], sample["concurrency"]) == (engine, size)
    ]
    return min(values), max(values)


def draw(axis: Any, section: dict[str, Any], samples: list[dict[str, Any]]) -> None:
    """Draw one group of bars per concurrency: median, and the range over the rounds."""
    mine = [sample for sample in samples if sample["section"] == section["name"]]
    table = medians(mine)
    sizes = section["concurrencies"]
    width = 0.8 / max(1, len(table))
    for index, (engine, row) in enumerate(table.items()):
        places = [place for place, size in enumerate(sizes) if size in row]
        heights = [row[sizes[place]] for place in places]
        ranges = [spread(mine, engine, sizes[place]) for place in places]
        below = [height - low for height, (low, _) in zip(heights, ranges, strict=True)]
        above = [high - height for height, (_, high) in zip(heights, ranges, strict=True)]
        bars = axis.bar(
            [place + (index - (len(table) - 1) / 2) * width for place in places],
            heights,
            width,
            yerr=[below, above],
            capsize=2,
            color=OUR_COLOR if is_ours(engine) else PEER_COLORS[index % len(PEER_COLORS)],
            label=engine,
        )
        axis.bar_label(bars, fmt="%.0f", fontsize=7, padding=2)
    axis.set_xticks(range(len(sizes)), [str(size) for size in sizes])
    axis.set_xlabel("concurrent requests")
    axis.set_ylabel("output tokens per second")
    axis.set_title(f"{section['name']}: {section['input_len']} in, {section['output_len']} out")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the bars of a comparison.")
    parser.add_argument("result", type=Path, help="JSON of bench_peers.py")
    parser.add_argument("plot", type=Path, help="picture to write: .png or .svg")
    args = parser.parse_args()
    report = json.loads(args.result.read_text(encoding="utf-8"))
    sections = report["sections"]
    figure = Figure(figsize=(1.5 + 5 * len(sections), 4.2), layout="constrained")
    axes = figure.subplots(1, len(sections), squeeze=False)
    for axis, section in zip(axes[0], sections, strict=True):
        draw(axis, section, report["samples"])
    figure.supxlabel(f"{report['hardware']} · {report['commit']} · {report['date']}", fontsize=7)
    figure.savefig(args.plot, dpi=150)


if __name__ == "__main__":
    main()
