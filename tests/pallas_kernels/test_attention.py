"""One suite for every implementation: against a dense f64 oracle in numpy, page by page.

Pages that nobody owns hold NaN: what an op reads beyond a row shows at once.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import BF16_BITS, paged_decode_attention, paged_extend_attention, write_kv
from pallas_kernels.api import IMPLEMENTATIONS


@dataclass(frozen=True)
class Spec:
    """Rows as (tokens before this step, tokens of this step)."""

    rows: tuple[tuple[int, int], ...]
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 16
    page_size: int = 16
    padding_tokens: int = 3
    padding_rows: int = 1
    extra_pages: int = 2

    @property
    def kv_lens(self) -> list[int]:
        return [before + new for before, new in self.rows]


EXTEND_SPECS = {
    "one_token": Spec(rows=((0, 1),)),
    "below_page": Spec(rows=((0, 15),)),
    "page": Spec(rows=((0, 16),)),
    "above_page": Spec(rows=((0, 17),)),
    "tile_edges": Spec(rows=((0, 63), (0, 64), (0, 65))),
    "several_tiles": Spec(rows=((0, 150),)),
    "cached_prefix": Spec(rows=((48, 10), (16, 70))),
    "long_prefix": Spec(rows=((300, 5), (0, 3))),
    "block_edges": Spec(rows=((127, 1), (128, 1), (129, 2), (255, 1))),
    "with_decode_rows": Spec(rows=((33, 1), (0, 20), (64, 1))),
    "group_1": Spec(rows=((5, 30), (0, 9)), num_heads=2),
    "group_8": Spec(rows=((5, 30), (0, 9)), num_heads=8, num_kv_heads=1),
    "group_3": Spec(rows=((5, 30),), num_heads=9, num_kv_heads=3, head_dim=64),
    "page_32": Spec(rows=((31, 2), (0, 33)), page_size=32),
    "page_64": Spec(rows=((60, 8),), page_size=64),
    "page_1": Spec(rows=((3, 4), (0, 2)), page_size=1),
    "page_256": Spec(rows=((250, 20),), page_size=256),
    "many_padding_rows": Spec(rows=((0, 7),), padding_rows=7, padding_tokens=60),
}
DECODE_LENS = {
    "one": (1,),
    "page_edges": (15, 16, 17),
    "block_edges": (127, 128, 129, 256, 257),
    "mixed": (1, 300, 16, 77),
}


@dataclass(frozen=True)
class Case:
    q: jax.Array
    k_pages: jax.Array
    v_pages: jax.Array
    page_table: jax.Array
    kv_lens: jax.Array
    q_starts: jax.Array
    expected: np.ndarray  # f64[T, N, H], 0 for padding tokens

    @property
    def num_tokens(self) -> int:
        return int(self.q_starts[-1])


def make_case(spec: Spec, seed: int = 0) -> Case:
    rng = np.random.default_rng(seed)
    needed = [-(-length // spec.page_size) for length in spec.kv_lens]
    num_pages = 1 + sum(needed) + spec.extra_pages
    shape = (num_pages, spec.num_kv_heads, spec.page_size, spec.head_dim)
    k_pages = np.full(shape, np.nan, np.float32)
    v_pages = np.full(shape, np.nan, np.float32)
    free = iter(rng.permutation(np.arange(1, num_pages)).tolist())
    width = max(needed) + 1
    num_rows = len(spec.rows) + spec.padding_rows
    page_table = np.zeros((num_rows, width), np.int32)
    new = [count for _, count in spec.rows]
    num_tokens = sum(new) + spec.padding_tokens
    q = rng.standard_normal((num_tokens, spec.num_heads, spec.head_dim)).astype(np.float32)
    expected = np.zeros((num_tokens, spec.num_heads, spec.head_dim))
    starts = np.concatenate([[0], np.cumsum(new), np.full(spec.padding_rows, sum(new))])
    for row, ((before, count), length) in enumerate(zip(spec.rows, spec.kv_lens, strict=True)):
        keys = rng.standard_normal((length, spec.num_kv_heads, spec.head_dim)).astype(np.float32)
        values = rng.standard_normal(keys.shape).astype(np.float32)
        page_table[row, : needed[row]] = [next(free) for _ in range(needed[row])]
        for position in range(length):
            page = page_table[row, position // spec.page_size]
            k_pages[page, :, position % spec.page_size] = keys[position]
            v_pages[page, :, position % spec.page_size] = values[position]
        mine = slice(starts[row], starts[row] + count)
        expected[mine] = dense(q[mine], keys, values, before)
    kv_lens = np.asarray(spec.kv_lens + [0] * spec.padding_rows, np.int32)
    arrays = (q, k_pages, v_pages, page_table, kv_lens, starts.astype(np.int32))
    return Case(*(jnp.asarray(array) for array in arrays), expected)


def dense(q: np.ndarray, keys: np.ndarray, values: np.ndarray, before: int) -> np.ndarray:
    """Causal softmax attention of one row in f64."""
    group = q.shape[1] // keys.shape[1]
    keys = np.repeat(keys.astype(np.float64), group, axis=1)
    values = np.repeat(values.astype(np.float64), group, axis=1)
    scores = np.einsum("tnh,snh->nts", q.astype(np.float64), keys) * scale_of(q)
    hidden = np.arange(len(keys))[None, :] > before + np.arange(len(q))[:, None]
    scores[:, hidden] = -np.inf
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("nts,snh->tnh", weights, values)


def scale_of(q: np.ndarray) -> float:
    return float(q.shape[-1]) ** -0.5


@pytest.mark.parametrize("implementation", sorted(IMPLEMENTATIONS))
@pytest.mark.parametrize("name", EXTEND_SPECS)
def test_extend(name: str, implementation: str) -> None:
    case = make_case(EXTEND_SPECS[name])
    out = paged_extend_attention(
        case.q, case.k_pages, case.v_pages, case.page_table, case.kv_lens, case.q_starts,
        scale=scale_of(case.q), implementation=implementation,
    )  # fmt: skip
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, case.expected, atol=2e-5, rtol=2e-5)  # padding is 0


@pytest.mark.parametrize("implementation", sorted(IMPLEMENTATIONS))
@pytest.mark.parametrize("name", DECODE_LENS)
@pytest.mark.parametrize("group", [1, 3, 8])
def test_decode(name: str, group: int, implementation: str) -> None:
    rows = tuple((length - 1, 1) for length in DECODE_LENS[name])
    case = make_case(Spec(rows=rows, num_heads=2 * group, padding_tokens=2, padding_rows=2))
    out = paged_decode_attention(
        case.q, case.k_pages, case.v_pages, case.page_table, case.kv_lens,
        scale=scale_of(case.q), implementation=implementation,
    )  # fmt: skip
    np.testing.assert_allclose(out, case.expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("implementation", sorted(IMPLEMENTATIONS))
def test_rows_that_share_pages(implementation: str) -> None:
    """Two rows over the same prefix pages see the same keys."""
    case = make_case(Spec(rows=((32, 5), (32, 5)), padding_tokens=0, padding_rows=0))
    table = case.page_table.at[1, :2].set(case.page_table[0, :2])
    out = paged_extend_attention(
        case.q, case.k_pages, case.v_pages, table, case.kv_lens, case.q_starts,
        scale=scale_of(case.q), implementation=implementation,
    )  # fmt: skip
    dense_table = paged_extend_attention(
        case.q[5:], case.k_pages, case.v_pages, table[1:], case.kv_lens[1:],
        jnp.asarray([0, 5], jnp.int32), scale=scale_of(case.q), implementation="reference",
    )  # fmt: skip
    np.testing.assert_allclose(out[5:], dense_table, atol=2e-5, rtol=2e-5)
    np.testing.assert_allclose(out[:5], case.expected[:5], atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("implementation", sorted(IMPLEMENTATIONS))
def test_pages_of_bf16_bits(implementation: str) -> None:
    """Bits give what bf16 pages give, written and read."""
    case = make_case(Spec(rows=((40, 30), (0, 12))))
    rng = np.random.default_rng(2)
    new = [jnp.asarray(rng.standard_normal((42, 2, 16)), jnp.float32) for _ in range(2)]
    slots = jnp.asarray(rng.permutation(case.k_pages.shape[0] * 16)[:42], jnp.int32)
    outs = []
    for stored in (lambda x: x, lambda x: jax.lax.bitcast_convert_type(x, BF16_BITS)):
        pages = [stored(p.astype(jnp.bfloat16)) for p in (case.k_pages, case.v_pages)]
        pages = write_kv(*pages, *new, slots, implementation=implementation)
        outs.append(
            paged_extend_attention(
                case.q, *pages, case.page_table, case.kv_lens, case.q_starts,
                scale=scale_of(case.q), implementation=implementation,
            )[: case.num_tokens]
        )  # fmt: skip
    np.testing.assert_allclose(outs[0], outs[1], atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("implementation", sorted(IMPLEMENTATIONS))
def test_bf16_pages(implementation: str) -> None:
    case = make_case(Spec(rows=((40, 30), (0, 12))))
    out = paged_extend_attention(
        jnp.asarray(case.q, jnp.bfloat16), jnp.asarray(case.k_pages, jnp.bfloat16),
        jnp.asarray(case.v_pages, jnp.bfloat16), case.page_table, case.kv_lens, case.q_starts,
        scale=scale_of(case.q), implementation=implementation,
    )  # fmt: skip
    assert out.dtype == jnp.bfloat16
    got = np.asarray(out, np.float32)[: case.num_tokens]
    np.testing.assert_allclose(got, case.expected[: case.num_tokens], atol=3e-2, rtol=3e-2)


@pytest.mark.parametrize("implementation", sorted(IMPLEMENTATIONS))
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


GOOD = make_case(Spec(rows=((0, 4),), padding_tokens=0, padding_rows=0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": GOOD.q[0]}, r"q must have shape \[tokens, N, H=16\]; got \(4, 16\)"),
        ({"q": GOOD.q[:, :3]}, r"query heads \(3\) must be a multiple .* key/value heads \(2\)"),
        ({"k_pages": GOOD.k_pages[0]}, r"a KV pool has shape \[P, K, page_size, H\]; got 3 axes"),
        ({"k_pages": GOOD.k_pages[1:]}, "k_pages and v_pages must agree"),
        ({"page_table": GOOD.page_table[0]}, r"page_table must be int32 \[B, W\]"),
        (
            {"page_table": GOOD.page_table.astype(jnp.int16)},
            r"page_table must be int32 \[B, W\]; got int16",
        ),
        ({"kv_lens": GOOD.kv_lens[:0]}, r"kv_lens must have shape \[B\] = \(1,\); got \(0,\)"),
        ({"q_starts": GOOD.q_starts[:1]}, r"q_starts must have shape \[B \+ 1\] = \(2,\)"),
        ({"implementation": "cuda"}, "implementation must be one of reference, xla; got 'cuda'"),
    ],
)
def test_messages(change: dict[str, object], message: str) -> None:
    fields = ("q", "k_pages", "v_pages", "page_table", "kv_lens", "q_starts")
    arguments = {name: getattr(GOOD, name) for name in fields} | {"scale": 1.0} | change
    with pytest.raises(ValueError, match=message):
        paged_extend_attention(**arguments)


def test_messages_of_decode_and_write() -> None:
    with pytest.raises(ValueError, match="q has 4 rows and page_table 1"):
        paged_decode_attention(
            GOOD.q, GOOD.k_pages, GOOD.v_pages, GOOD.page_table, GOOD.kv_lens, scale=1.0
        )
    with pytest.raises(ValueError, match=r"k must have shape \[T, K, H\] = \(4, 2, 16\)"):
        write_kv(GOOD.k_pages, GOOD.v_pages, GOOD.q, GOOD.q, jnp.zeros((4,), jnp.int32))
