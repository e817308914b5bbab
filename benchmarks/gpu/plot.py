"""Draws a report's kernel times: decode as bandwidth, extend as arithmetic.

python -m gpu.plot RESULT.json PICTURE.png
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gpu.goals import ok_values

PANELS = (("decode", "kv_bytes", "copy", "TB/s of keys and values"),
          ("extend", "flops", "matmul", "TFLOP/s"))  # fmt: skip


def draw(result: dict[str, Any], path: Path) -> None:
    """One panel per kernel: a group of bars per call, one bar per implementation."""
    records = result["records"]
    values = [*ok_values(records, "time_kernels"), *ok_values(records, "time_torch")]
    figure = Figure(figsize=(14, 7))
    FigureCanvasAgg(figure)  # no display is needed
    panels = figure.subplots(1, 2)
    for axes, (op, work, ceiling, unit) in zip(panels, PANELS, strict=True):
        mine = [v for v in values if v["op"] == op]
        _bars(axes, mine, work)
        axes.axvline(result["ceilings"][ceiling] / 1e12, color="grey", linestyle="--")
        axes.set_xlabel(f"{unit}; dashed: the measured ceiling ({ceiling})")
        axes.set_title(f"{op} attention")
    figure.suptitle(result["about"]["title"])
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def _bars(axes: Any, values: Sequence[dict[str, Any]], work: str) -> None:
    shapes = list(dict.fromkeys(v["shape"] for v in values))
    sides = list(dict.fromkeys(v["side"] for v in values))
    height = 0.8 / max(1, len(sides))
    for index, side in enumerate(sides):
        mine = [v for v in values if v["side"] == side]
        places = [shapes.index(v["shape"]) + index * height for v in mine]
        rates = [v[work] / v["median_s"] / 1e12 for v in mine]
        axes.barh(places, rates, height=height, label=side)
    labels = [shape.split(" ", 1)[1] for shape in shapes]
    axes.set_yticks([index + 0.4 - height / 2 for index in range(len(shapes))], labels, fontsize=7)
    axes.invert_yaxis()
    if sides:
        axes.legend(fontsize=8)


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text("utf-8")), Path(sys.argv[2]))
