"""Every kind of kernel, compiled for an H100: no spills, tensor cores and copy engine in use."""

from typing import Any

import aot_tool
import pytest

from pallas_kernels import aot_kernels
from pallas_kernels.tuning import SMEM_PER_BLOCK

TITLES = [case.title for case in aot_kernels.grid("suite")]


@pytest.fixture(scope="module")
def kernels() -> dict[str, dict[str, Any]]:
    return {row["kernel"]: row for row in aot_tool.rows("kernels", "--grid", "suite")}


@pytest.mark.parametrize("title", TITLES)
def test_a_kernel_holds_every_law(kernels: dict[str, dict[str, Any]], title: str) -> None:
    row = kernels[title]
    assert row["problems"] == []
    assert row["spill_bytes"] == 0
    assert (row["hgmma"] and row["utmaldg"]) or title.startswith("add_rms_norm")
    # what a multiprocessor has for one block
    assert 0 <= row["shared_bytes"] <= SMEM_PER_BLOCK
    assert row["registers"] * row["threads"] <= 65536


def test_every_case_was_compiled(kernels: dict[str, dict[str, Any]]) -> None:
    assert sorted(kernels) == sorted(TITLES)
