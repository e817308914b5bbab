"""One suite for every implementation that runs anywhere: against a dense f64 oracle."""

import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import DECODE_SPECS, EXTEND_SPECS, FP8, Spec, decode_spec, make_case

from pallas_kernels import (
    BF16_BITS,
    api,
    paged_decode_attention,
    paged_extend_attention,
    write_kv,
)

each_implementation = pytest.mark.parametrize("implementation", ["reference", "xla"])


# The specification has no blocks, tiles or groups to get wrong: some of the cases tell.
OF_REFERENCE = ("mixed", "group_3", "page_1", "infinities", "bf16_bits", "fp8_all", "window_5")
EXTENDS = [("xla", name) for name in EXTEND_SPECS] + [("reference", name) for name in OF_REFERENCE]
DECODES = [("xla", name) for name in DECODE_SPECS]
DECODES += [("reference", name) for name in ("page_edges", "fp8_all")]


@pytest.mark.parametrize(("implementation", "name"), EXTENDS)
def test_extend(name: str, implementation: str) -> None:
    case = make_case(EXTEND_SPECS[name])
    op = partial(paged_extend_attention, **case.options, implementation=implementation)
    case.check(jax.jit(op)(*case.extend_arguments))


@pytest.mark.parametrize(("implementation", "name"), DECODES)
def test_decode(name: str, implementation: str) -> None:
    case = make_case(DECODE_SPECS[name])
    op = partial(paged_decode_attention, **case.options, implementation=implementation)
    case.check(jax.jit(op)(*case.decode_arguments))


@each_implementation
def test_rows_that_share_pages(implementation: str) -> None:
    """Two rows over the same prefix pages see the same keys."""
    case = make_case(Spec(rows=((32, 5), (32, 5)), padding_tokens=0, padding_rows=0))
    table = case.page_table.at[1, :2].set(case.page_table[0, :2])
    pools = (case.k_pages, case.v_pages)

    @partial(jax.jit, static_argnames="implementation")
    def attend(*arguments: jax.Array, implementation: str) -> jax.Array:
        q, table, kv_lens, q_starts = arguments
        return paged_extend_attention(
            q, *pools, table, kv_lens, q_starts, scale=0.25, implementation=implementation
        )

    out = attend(case.q, table, case.kv_lens, case.q_starts, implementation=implementation)
    starts = jnp.asarray([0, 5], jnp.int32)
    alone = attend(case.q[5:], table[1:], case.kv_lens[1:], starts, implementation="reference")
    np.testing.assert_allclose(out[5:], alone, atol=2e-5, rtol=2e-5)
    np.testing.assert_allclose(out[:5], case.expected[:5], atol=2e-5, rtol=2e-5)


@each_implementation
@pytest.mark.parametrize("is_decode", [True, False])
def test_pages_before_the_window_are_not_read_as_values(
    implementation: str, is_decode: bool
) -> None:
    """They may have gone to another owner by then: poisoned, or back to the null page."""
    case = make_case(decode_spec(300, 150, padding_tokens=0, padding_rows=0, sliding_window=40))
    first_owned = (np.asarray(case.kv_lens) - 40) // 16
    table = np.asarray(case.page_table).copy()
    for row, column in enumerate(first_owned):
        table[row, :column] = 0  # the null page is poisoned
    arguments = [*case.decode_arguments]
    arguments[3] = jnp.asarray(table)
    if is_decode:
        op = partial(paged_decode_attention, *arguments)
    else:
        op = partial(paged_extend_attention, *arguments, case.q_starts)
    case.check(jax.jit(partial(op, **case.options, implementation=implementation))())


@each_implementation
def test_extend_of_single_tokens_is_decode(implementation: str) -> None:
    case = make_case(decode_spec(40, 1, 17, padding_tokens=0, padding_rows=0))
    options = case.options | {"implementation": implementation}
    extend = jax.jit(partial(paged_extend_attention, **options))(*case.extend_arguments)
    decode = jax.jit(partial(paged_decode_attention, **options))(*case.decode_arguments)
    np.testing.assert_allclose(extend, decode, atol=1e-6, rtol=1e-6)


@each_implementation
def test_write_kv(implementation: str) -> None:
    rng = np.random.default_rng(1)
    pages = rng.standard_normal((2, 5, 2, 4, 8)).astype(np.float32)
    k, v = rng.standard_normal((2, 6, 2, 8)).astype(np.float32)
    slots = jnp.asarray([4, 5, 19, 8, 0, 0], jnp.int32)  # two padding tokens
    got_k, got_v = write_kv(
        *map(jnp.asarray, (pages[0], pages[1], k, v)), slots, implementation=implementation
    )
    for got, before, new in ((got_k, pages[0], k), (got_v, pages[1], v)):
        expected = before.copy()
        for token, slot in enumerate(slots[:4].tolist()):
            expected[slot // 4, :, slot % 4] = new[token]
        np.testing.assert_array_equal(got[1:], expected[1:])  # the null page holds anything


@each_implementation
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", BF16_BITS, FP8])
def test_what_is_written_is_read(implementation: str, dtype: object) -> None:
    """A row of one token attends to itself alone: out is its value, as the pool rounds it."""
    rng = np.random.default_rng(2)
    k, v = (jnp.asarray(rng.standard_normal((3, 2, 16)), jnp.float32) for _ in range(2))
    scales = (jnp.float32(0.5), jnp.float32(0.02)) if dtype == FP8 else (None, None)
    options = dict(zip(("k_scale", "v_scale"), scales, strict=True))
    options["implementation"] = implementation

    @jax.jit
    def write_and_read(k: jax.Array, v: jax.Array) -> jax.Array:
        pools = (jnp.zeros((4, 2, 16, 16), dtype),) * 2
        pools = write_kv(*pools, k, v, jnp.asarray([16, 32, 48], jnp.int32), **options)
        table = jnp.asarray([[1], [2], [3]], jnp.int32)
        ones = jnp.ones((3,), jnp.int32)
        return paged_decode_attention(
            jnp.ones((3, 4, 16), jnp.float32), *pools, table, ones, scale=1.0, **options
        )

    out = write_and_read(k, v)
    step = {"float32": 1e-6, "float16": 2**-11, FP8: 2**-4}.get(str(dtype), 2**-8)
    np.testing.assert_allclose(out, jnp.repeat(v, 2, axis=1), rtol=step, atol=step * 0.02)


@each_implementation
def test_fp8_saturates(implementation: str) -> None:
    """Beyond 448 x scale the largest value is stored; a plain cast would store NaN."""
    pools = (jnp.zeros((2, 1, 16, 8), FP8),) * 2
    k = jnp.full((1, 1, 8), 1000.0)
    got_k, got_v = write_kv(
        *pools, k, -k, jnp.asarray([16], jnp.int32),
        k_scale=jnp.float32(2), v_scale=jnp.float32(4), implementation=implementation,
    )  # fmt: skip
    assert set(np.asarray(got_k[1, 0, 0], np.float32)) == {448.0}
    assert set(np.asarray(got_v[1, 0, 0], np.float32)) == {-256.0}  # 250 to three bits


@pytest.mark.parametrize("dtype", [jnp.float32, BF16_BITS])
def test_write_kv_is_in_place(dtype: jnp.dtype) -> None:
    pages = jax.ShapeDtypeStruct((512, 2, 16, 8), dtype)
    new = jax.ShapeDtypeStruct((4, 2, 8), jnp.float32)
    slots = jax.ShapeDtypeStruct((4,), jnp.int32)
    compiled = (
        jax.jit(write_kv, donate_argnums=(0, 1)).lower(pages, pages, new, new, slots).compile()
    )
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes == 2 * 512 * 2 * 16 * 8 * jnp.dtype(dtype).itemsize
    assert memory.temp_size_in_bytes < 64 * 1024


@pytest.mark.parametrize("is_decode", [True, False])
def test_the_portable_path_does_not_walk_what_is_before_the_window(is_decode: bool) -> None:
    """Time goes with the window, not with the context: 256 times fewer blocks here."""
    case = make_case(decode_spec(1, 40, padding_tokens=0, padding_rows=0))
    table = jnp.zeros((2, 2048), jnp.int32)
    arguments = (case.q, case.k_pages, case.v_pages, table, jnp.asarray([1, 2**15], jnp.int32))
    op = partial(paged_decode_attention, scale=1.0, implementation="xla")
    if not is_decode:
        arguments = (*arguments, case.q_starts)
        op = partial(paged_extend_attention, scale=1.0, implementation="xla")

    def seconds(window: int | None) -> float:
        run = jax.jit(partial(op, sliding_window=window))
        run(*arguments).block_until_ready()
        times = []
        for _ in range(5):
            started = time.perf_counter()
            run(*arguments).block_until_ready()
            times.append(time.perf_counter() - started)
        return min(times)

    assert seconds(100) < seconds(None) / 4


def test_every_implementation_offers_the_same_ops() -> None:
    ops = {"write_kv", "paged_decode_attention", "paged_extend_attention"}
    for name, module in api.IMPLEMENTATIONS.items():
        assert all(callable(vars(module)[op]) for op in ops), name
