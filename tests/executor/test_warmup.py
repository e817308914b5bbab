"""``CompileCounter`` hears of compiles by the name of an event that jax does not document."""

import logging
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import pytest

from jaxserve.executor.warmup import CompileCounter


@pytest.fixture
def counter() -> Iterator[CompileCounter]:
    counter = CompileCounter()
    yield counter
    counter.close()


def compile_one(factor: float) -> None:
    spec = jax.ShapeDtypeStruct((3,), jnp.float32)
    jax.jit(lambda x: x * factor).lower(spec).compile()


def test_each_compile_is_counted_once(counter: CompileCounter) -> None:
    compile_one(2.0)
    compile_one(3.0)
    assert (counter.total, counter.since_freeze) == (2, 0)


def test_a_program_from_the_compilation_cache_counts_too(
    counter: CompileCounter, compilation_cache_dir: str
) -> None:
    """Requests wait for it as well, and a law about compiles must not depend on a cache."""
    assert jax.config.jax_compilation_cache_dir == compilation_cache_dir
    before = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    try:
        compile_one(4.0)
        compile_one(4.0)
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", before)
    assert counter.total == 2


def test_a_compile_after_the_freeze_is_a_warning(
    counter: CompileCounter, caplog: pytest.LogCaptureFixture
) -> None:
    compile_one(5.0)
    counter.freeze()
    with caplog.at_level(logging.WARNING):
        compile_one(6.0)
    assert counter.since_freeze == 1
    assert "a program was compiled after warm-up" in caplog.text


def test_a_closed_counter_hears_nothing(counter: CompileCounter) -> None:
    other = CompileCounter()
    other.close()
    compile_one(7.0)
    assert (other.total, counter.total) == (0, 1)
