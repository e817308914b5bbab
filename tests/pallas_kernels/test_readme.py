"""The package's README: its example runs, its files exist, its table is what the code says."""

import re
from pathlib import Path

import pallas_kernels
from pallas_kernels.support import DTYPES, HEAD_DIMS, MAX_GROUP, PAGE_SIZES

FOLDER = Path(pallas_kernels.__file__).parent
TEXT = (FOLDER / "README.md").read_text(encoding="utf-8")


def test_the_example_runs() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})


def test_the_files_it_names_exist() -> None:
    named = re.findall(r"`([\w/]+\.py|scripts/\w+)`", TEXT)
    assert named
    assert not [
        name
        for name in named
        if not any((base / name).exists() for base in (FOLDER, FOLDER.parent))
    ]


def test_the_table_of_the_kernels_is_what_they_take() -> None:
    rows = dict(re.findall(r"^\| ([\w ]+) \| ([^|]+?) \|", TEXT, flags=re.MULTILINE))
    assert rows["head dim"] == ", ".join(map(str, HEAD_DIMS))
    assert rows["page size"] == ", ".join(map(str, PAGE_SIZES))
    assert rows["G"] == f"1 to {MAX_GROUP}"
    assert rows["q"] == ", ".join(DTYPES).replace("bfloat", "bf").replace("float", "f")
