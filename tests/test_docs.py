"""The documents name only what exists: files, links, flags."""

import dataclasses
import re
from pathlib import Path

import generate_docs
import pytest

from jaxserve.config import EngineConfig, ServerConfig
from jaxserve.flag_tables import ALIASES

ROOT = Path(__file__).parent.parent
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
DOCUMENTS.append(ROOT / "benchmarks" / "README.md")
# Where a path in a document may start: written as the reader of that section would say it.
BASES = [ROOT, *(ROOT / name for name in ("jaxserve", "pallas_kernels", "benchmarks", "scripts"))]

CODE_PATH = re.compile(r"`((?:[\w-]+/)*[\w-]+\.(?:py|md|toml)|(?:[\w-]+/)+)`")
LINK = re.compile(r"\]\(([^)#:]+)\)")
FLAG = re.compile(r"`(--[a-z0-9-]+)`")

FIELDS = [f for config in (EngineConfig, ServerConfig) for f in dataclasses.fields(config)]
FLAGS = {f"--{field.name.replace('_', '-')}" for field in FIELDS}
NEGATIONS = {f"--no-{flag[2:]}" for flag in FLAGS}

OTHERS = {"--help", "--config"}

each_document = pytest.mark.parametrize(
    "document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix()
)


@each_document
def test_paths_and_links_exist(document: Path) -> None:
    text = document.read_text()
    bases = [*BASES, document.parent]
    named = [m for m in CODE_PATH.findall(text) if not any((base / m).exists() for base in bases)]
    linked = [m for m in LINK.findall(text) if not (document.parent / m).exists()]
    assert not named + linked


@pytest.mark.parametrize("name", generate_docs.DOCUMENTS)
def test_generated_tables_are_current(name: str) -> None:
    text = (ROOT / name).read_text()
    assert generate_docs.BLOCK.search(text)
    assert generate_docs.regenerate(text) == text, "run scripts/generate_docs.py"


def test_every_block_is_in_a_document() -> None:
    text = "".join((ROOT / name).read_text() for name in generate_docs.DOCUMENTS)
    blocks = [found[2] for found in generate_docs.BLOCK.finditer(text)]
    assert sorted(blocks) == sorted(generate_docs.BLOCKS)


@each_document
def test_flags_in_the_text_exist(document: Path) -> None:
    named = set(FLAG.findall(document.read_text()))
    assert not named - FLAGS - NEGATIONS - set(ALIASES.values()) - OTHERS
