"""An ``LLM`` around a fake engine that gives every request the same answer."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_engine import ANSWER, FakeEngine, fake_llm

from jaxserve import LLM
from jaxserve.text import Tokenizer, load_tokenizer


@pytest.fixture(scope="session")
def tokenizer(demo_model: Path) -> Tokenizer:
    return load_tokenizer(demo_model)


@pytest.fixture
def answer(tokenizer: Tokenizer) -> list[int]:
    return tokenizer.encode(ANSWER)


@pytest.fixture
def pair(tokenizer: Tokenizer, answer: list[int]) -> Iterator[tuple[LLM, FakeEngine]]:
    llm, engine = fake_llm(tokenizer, lambda request: answer)
    yield llm, engine
    llm.shutdown()
