"""What the ops say to arguments that cannot be right: given, allowed, what to do."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import FP8, Spec, make_case

from pallas_kernels import (
    api,
    check_page_table,
    paged_decode_attention,
    paged_extend_attention,
    unsupported_reason,
    write_kv,
)

GOOD = make_case(Spec(rows=((0, 4),), padding_tokens=0, padding_rows=0))
FIELDS = ("q", "k_pages", "v_pages", "page_table", "kv_lens", "q_starts")
POOL = (
    "float32, bfloat16, float16, float8_e4m3fn, uint16, uint8 (uint16 holds the bits of bfloat16, "
    "uint8 those of float8_e4m3fn)"
)
FLOATS = "float32, bfloat16, float16"


def arguments(**changes: object) -> dict[str, object]:
    return {name: getattr(GOOD, name) for name in FIELDS} | {"scale": 1.0} | changes


EXTEND_MESSAGES: list[tuple[dict[str, object], str]] = [
    (
        {"q": GOOD.q[0]},
        "q must have shape [tokens, N, H] with the pools' H = 16; got (4, 16)",
    ),
    ({"q": GOOD.q.astype(jnp.int32)}, f"q must be one of {FLOATS}; got int32"),
    (
        {"q": GOOD.q[:, :3]},
        "the number of query heads (3) must be a multiple of the number of key/value heads (2); "
        "pad the query heads or repeat the kv heads",
    ),
    (
        {"k_pages": GOOD.k_pages[0]},
        "a KV pool has shape [P, K, page_size, H]; got 3 axes: (2, 16, 16)",
    ),
    (
        {"k_pages": GOOD.k_pages[1:]},
        "k_pages and v_pages must agree in shape and dtype; got float32(3, 2, 16, 16) and "
        "float32(4, 2, 16, 16)",
    ),
    (
        {name: GOOD.k_pages.astype(jnp.int8) for name in ("k_pages", "v_pages")},
        f"the pools' dtype must be one of {POOL}; got int8",
    ),
    (
        {"page_table": GOOD.page_table[0]},
        "page_table must be int32 [B, W] with at least one row and one column; got int32(2,)",
    ),
    (
        {"page_table": GOOD.page_table.astype(jnp.int16)},
        "page_table must be int32 [B, W] with at least one row and one column; got int16(1, 2)",
    ),
    (
        {"page_table": GOOD.page_table[:, :0]},
        "page_table must be int32 [B, W] with at least one row and one column; got int32(1, 0)",
    ),
    ({"kv_lens": GOOD.kv_lens[:0]}, "kv_lens must be int32 [B] of shape (1,); got int32(0,)"),
    (
        {"q_starts": GOOD.q_starts[:1]},
        "q_starts must be int32 [B + 1] of shape (2,); got int32(1,)",
    ),
    (
        {"q_starts": GOOD.q_starts.astype(jnp.float32)},
        "q_starts must be int32 [B + 1] of shape (2,); got float32(2,)",
    ),
    (
        {"scale": "0.1"},
        "scale must be a finite number, usually H ** -0.5; got '0.1' (it is static: no array, no "
        "tracer)",
    ),
    (
        {"scale": float("nan")},
        "scale must be a finite number, usually H ** -0.5; got nan (it is static: no array, no "
        "tracer)",
    ),
    (
        {"logit_soft_cap": 0.0},
        "logit_soft_cap must be a finite number > 0, or None for no cap; got 0.0",
    ),
    (
        {"logit_soft_cap": True},
        "logit_soft_cap must be a finite number > 0, or None for no cap; got True (it is static: "
        "no array, no tracer)",
    ),
    (
        {"sliding_window": 0},
        "sliding_window must be a whole number of positions >= 1, or None for all; got 0",
    ),
    (
        {"sliding_window": 4.0},
        "sliding_window must be a whole number of positions >= 1, or None for all; got 4.0 (it is "
        "static: no array, no tracer)",
    ),
    (
        {"k_scale": jnp.float32(1)},
        "k_scale is for pools of float8_e4m3fn; these are float32: leave it None",
    ),
    (
        {
            "k_pages": GOOD.k_pages.astype(FP8),
            "v_pages": GOOD.v_pages.astype(FP8),
            "v_scale": jnp.ones((2,), jnp.float32),
        },
        "v_scale must be a float32 array of shape (); got float32(2,)",
    ),
    (
        {"implementation": "cuda"},
        "implementation must be one of pallas, reference, xla, or None for the first that "
        "supports the call; got 'cuda'",
    ),
]


@pytest.mark.parametrize(("changes", "message"), EXTEND_MESSAGES)
def test_messages_of_extend(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        paged_extend_attention(**arguments(**changes))


def test_a_traced_scale_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"scale must be a finite number.*\(it is static: no array"
    ):
        jax.jit(paged_decode_attention)(
            GOOD.q[:1], GOOD.k_pages, GOOD.v_pages, GOOD.page_table, GOOD.kv_lens, scale=1.0
        )


def test_messages_of_decode() -> None:
    message = (
        "q has 4 rows and page_table 1; decode takes one query per row: use "
        "paged_extend_attention for more"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        paged_decode_attention(*GOOD.decode_arguments, scale=1.0)
    with pytest.raises(ValueError, match=r"sliding_window must be .* got -1"):
        paged_decode_attention(*GOOD.decode_arguments, scale=1.0, sliding_window=-1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"k": GOOD.q},
            "k must have shape [T, K, H] = (4, 2, 16): a row per write slot, a head per kv head "
            "of the pools; got (4, 4, 16)",
        ),
        ({"v": jnp.zeros((4, 2, 16), jnp.int32)}, f"v must be one of {FLOATS}; got int32"),
        (
            {"write_slots": jnp.zeros((2, 2), jnp.int32)},
            "write_slots must be int32 [T] of shape (4,); got int32(2, 2)",
        ),
        (
            {"v_scale": jnp.float32(1)},
            "v_scale is for pools of float8_e4m3fn; these are float32: leave it None",
        ),
    ],
)
def test_messages_of_write(change: dict[str, object], message: str) -> None:
    k = jnp.zeros((4, 2, 16), jnp.float32)
    good = {"k": k, "v": k, "write_slots": jnp.zeros((4,), jnp.int32)}
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        write_kv(GOOD.k_pages, GOOD.v_pages, **good | change)


SIZES = {"num_heads": 32, "num_kv_heads": 8, "head_dim": 128, "page_size": 16, "dtype": "bfloat16"}
REFUSED: list[tuple[dict[str, object], str]] = [
    ({"head_dim": 80}, "given head_dim 80; supported 64, 96, 128, 256"),
    ({"page_size": 8}, "given page_size 8; supported 16, 32, 64"),
    ({"page_size": 128}, "given page_size 128; supported 16, 32, 64"),
    ({"dtype": "float32"}, "given dtype of q float32; supported bfloat16, float16"),
    (
        {"kv_dtype": "uint16"},
        "given dtype of the pools uint16; supported bfloat16, float16, float8_e4m3fn",
    ),
    (
        {"kv_dtype": "float16"},
        "given q of bfloat16 with pools of float16; supported one dtype for both",
    ),
    ({"num_heads": 136}, "given 17 query heads per kv head; supported 1 to 16"),
]


def spec_of(sizes: dict[str, object]) -> dict[str, jax.ShapeDtypeStruct]:
    """Abstract arguments of extend, 6 tokens of 2 rows, for ``sizes``."""
    pool = jax.ShapeDtypeStruct(
        (8, sizes["num_kv_heads"], sizes["page_size"], sizes["head_dim"]),
        jnp.dtype(sizes.get("kv_dtype", sizes["dtype"])),
    )
    q = jax.ShapeDtypeStruct((6, sizes["num_heads"], sizes["head_dim"]), jnp.dtype(sizes["dtype"]))
    ints = {"page_table": (2, 3), "kv_lens": (2,), "q_starts": (3,)}
    tables = {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name, shape in ints.items()}
    return {"q": q, "k_pages": pool, "v_pages": pool, **tables}


@pytest.mark.parametrize(("changes", "reason"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_the_kernels_do_not_take(changes: dict[str, object], reason: str) -> None:
    """Said before tracing and while tracing, in the same words; None goes on to ``xla``."""
    sizes = SIZES | changes
    message = f"pallas attention: {reason}; use implementation='xla'"
    assert unsupported_reason(**sizes) == message
    extend = spec_of(sizes)
    decode = {name: value for name, value in extend.items() if name != "q_starts"}
    decode["q"] = jax.ShapeDtypeStruct((2, *extend["q"].shape[1:]), extend["q"].dtype)
    for op, specs in ((paged_extend_attention, extend), (paged_decode_attention, decode)):
        named = partial(op, scale=1.0, implementation="pallas")
        with pytest.raises(NotImplementedError, match=f"^{re.escape(message)}"):
            jax.eval_shape(named, **specs)


def test_what_the_kernels_take() -> None:
    for head_dim in (64, 96, 128, 256):
        for page_size in (16, 32, 64):
            for group in range(1, 17):
                sizes = SIZES | {"head_dim": head_dim, "page_size": page_size}
                assert unsupported_reason(**sizes | {"num_heads": 8 * group}) is None
    assert unsupported_reason(**SIZES | {"dtype": jnp.float16}) is None
    for dtype in ("bfloat16", "float16"):
        assert unsupported_reason(**SIZES | {"dtype": dtype, "kv_dtype": "float8_e4m3fn"}) is None


def test_none_takes_the_first_that_supports_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Hopper ``pallas``, ``xla`` where it refuses; a named one is never swapped."""
    assert api.default_order() == ("xla",)  # this process runs on a CPU
    monkeypatch.setattr(api, "default_order", lambda: ("pallas", "xla"))
    case = make_case(Spec(rows=((0, 4),)))  # head dim 16: no kernel
    case.check(paged_extend_attention(*case.extend_arguments, **case.options))
    with pytest.raises(NotImplementedError, match="given head_dim 16; supported 64, 96"):
        paged_extend_attention(*case.extend_arguments, **case.options, implementation="pallas")
    with pytest.raises(ValueError, match="scale must be"):  # no reason to try the next
        paged_extend_attention(*case.extend_arguments, scale=None)


@pytest.mark.parametrize(
    ("backend", "capability", "order"),
    [
        ("cpu", None, ("xla",)),
        ("gpu", "9.0", ("pallas", "xla")),
        ("gpu", "8.9", ("xla",)),
        ("gpu", "10.0", ("xla",)),
    ],
)
def test_the_order_follows_the_platform(
    backend: str, capability: str | None, order: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Device:
        compute_capability = capability

    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax, "devices", lambda: [Device()])
    assert api.default_order() == order


TABLE = np.asarray([[3, 7, 0], [5, 0, 0], [0, 0, 0]], np.int32)
LENS = np.asarray([17, 16, 0], np.int32)


def test_a_good_page_table_passes() -> None:
    check_page_table(TABLE, LENS, num_pages=8, page_size=16)
    check_page_table(TABLE[:0], LENS[:0], num_pages=8, page_size=16)


@pytest.mark.parametrize(
    ("row", "column", "page", "message"),
    [
        (
            0, 1, 8,
            "page_table[0, 1] is 8 (a page of its 17 tokens); allowed is 1 to 7: page 0 is the "
            "null page, nobody owns it",
        ),
        (
            1, 0, -1,
            "page_table[1, 0] is -1 (a page of its 16 tokens); allowed is 1 to 7: page 0 is the "
            "null page, nobody owns it",
        ),
        (
            0, 1, 0,
            "page_table[0, 1] is 0 (a page of its 17 tokens); allowed is 1 to 7: page 0 is the "
            "null page, nobody owns it",
        ),
        (1, 1, 9, "page_table[1, 1] is 9 (past its length); allowed is 0 to 7"),
        (2, 2, -5, "page_table[2, 2] is -5 (past its length); allowed is 0 to 7"),
    ],
)  # fmt: skip
def test_page_ids_out_of_range(row: int, column: int, page: int, message: str) -> None:
    table = TABLE.copy()
    table[row, column] = page
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_page_table(table, LENS, num_pages=8, page_size=16)


def test_lengths_that_the_table_cannot_hold() -> None:
    message = (
        "kv_lens[0] is 49; allowed is 0 to 48, what 3 pages of 16 tokens hold: give the row more "
        "columns"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_page_table(TABLE, LENS + 32, num_pages=8, page_size=16)
    with pytest.raises(ValueError, match=r"kv_lens\[2\] is -1; allowed is 0 to 48"):
        check_page_table(TABLE, np.asarray([17, 16, -1]), num_pages=8, page_size=16)
    with pytest.raises(ValueError, match=r"page_table must be \[B, W\] and kv_lens \[B\]; got"):
        check_page_table(TABLE, LENS[:2], num_pages=8, page_size=16)
