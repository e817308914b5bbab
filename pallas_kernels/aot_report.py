"""Rooflines, and tables of plain text."""

from collections.abc import Sequence
from dataclasses import dataclass

# An H100 80 GB (SXM): a device-to-device copy, and an 8192³ bf16 matrix product, as measured
COPY_TB_S = 3.0
MATMUL_TFLOP_S = 798.0
GAP_US = 1.0  # between two dependent kernels of a CUDA graph; assumed, not measured


@dataclass(frozen=True, slots=True)
class Roofline:
    """What the device can do.  ``gap_s`` is lost between two launches."""

    bytes_per_s: float = COPY_TB_S * 1e12
    flops_per_s: float = MATMUL_TFLOP_S * 1e12
    gap_s: float = GAP_US * 1e-6

    def seconds(self, num_bytes: float, flops: float) -> float:
        """The time to move the bytes or to do the products, whichever is longer."""
        return max(num_bytes / self.bytes_per_s, flops / self.flops_per_s)


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns as wide as their widest cell: text to the left, figures to the right."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    figures = [bool(rows) and not isinstance(cell, str) for cell in (rows[0] if rows else header)]
    lines = []
    for row in cells:
        padded = [
            cell.rjust(width) if is_figure else cell.ljust(width)
            for cell, width, is_figure in zip(row, widths, figures, strict=True)
        ]
        lines.append("  ".join(padded).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def human(num_bytes: float) -> str:
    """``8.6 GB``: powers of 1000, as bandwidths have them."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(num_bytes) < 1000:
            return f"{num_bytes:.4g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.4g} TB"


def duration(seconds: float) -> str:
    """``5.01 ms`` or ``12.3 µs``."""
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.1f} µs"
