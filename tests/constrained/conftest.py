"""One compiler for the tests of a file: its helper process takes a second to start."""

from collections.abc import Iterator

import pytest
from grammar_harness import byte_level

from jaxserve.constrained import GrammarCompiler


@pytest.fixture(scope="module")
def compiler() -> Iterator[GrammarCompiler]:
    compiler = GrammarCompiler(byte_level(), num_threads=1)
    yield compiler
    compiler.close()
