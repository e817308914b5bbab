"""Which attention serves: chosen by device and sizes, checked on the device, never swapped."""

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from published_configs import LLAMA_3_1_8B, QWEN_2_5_0_5B

from jaxserve.config import DeviceInfo, EngineConfig, resolve
from jaxserve.errors import ConfigError, DeviceHangError
from jaxserve.executor import settle_backend
from jaxserve.executor.attention_backend import (
    AttentionBackend,
    check_backend,
    choose_backend,
    kernel_shapes,
)
from jaxserve.executor.kernel_check import KernelShapes, find_problem
from jaxserve.model_config import ModelConfig
from jaxserve.shard_plan import plan_shards
from pallas_kernels import api, xla

H100 = DeviceInfo("cuda", "NVIDIA H100", 80 * 2**30, 16, num_devices=8, compute_capability="9.0")
A100 = replace(H100, name="NVIDIA A100", compute_capability="8.0")
CPU = DeviceInfo("cpu", "cpu", 8 * 2**30, 2)
KERNELS = AttentionBackend("pallas", "Hopper GPU")


def shapes(**changes: Any) -> KernelShapes:
    sizes = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 32, "page_size": 16, "hidden_size": 128}
    sizes |= changes
    dtype = jnp.dtype(sizes.pop("dtype", "float32"))
    kv_dtype = jnp.dtype(sizes.pop("kv_dtype", dtype))
    return KernelShapes(**sizes, dtype=dtype, kv_dtype=kv_dtype)


LLAMA = shapes(num_heads=32, num_kv_heads=8, head_dim=128, dtype="bfloat16")


# --- chosen before anything is compiled -------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "device", "sizes", "expected"),
    [
        ("auto", H100, LLAMA, AttentionBackend("pallas", "Hopper GPU")),
        ("pallas", H100, LLAMA, AttentionBackend("pallas", "asked for")),
        ("xla", H100, LLAMA, AttentionBackend("xla", "asked for")),
        ("reference", CPU, LLAMA, AttentionBackend("reference", "asked for")),
        ("auto", CPU, LLAMA, AttentionBackend("xla", "the portable path")),
    ],
)
def test_choice(asked: str, device: DeviceInfo, sizes: KernelShapes, expected) -> None:
    assert choose_backend(asked, device, sizes) == expected


@pytest.mark.parametrize(
    ("device", "sizes", "reason"),
    [
        (A100, LLAMA, "the kernels are for NVIDIA Hopper GPUs .* and this is cuda .NVIDIA A100. of "
         "compute capability 8.0"),
        (H100, replace(LLAMA, head_dim=80), "given head_dim 80; supported 64, 96, 128, 256"),
        (H100, replace(LLAMA, page_size=8), "given page_size 8; supported 16, 32, 64"),
        (H100, shapes(), "given head_dim 32"),
        (H100, shapes(head_dim=64), "given dtype of q float32; supported bfloat16, float16"),
        (H100, replace(LLAMA, num_heads=136), "17 query heads per kv head"),
    ],
)  # fmt: skip
def test_what_the_kernels_cannot_do_is_a_reason_under_auto_and_an_error_by_name(
    device: DeviceInfo, sizes: KernelShapes, reason: str
) -> None:
    chosen = choose_backend("auto", device, sizes)
    assert chosen.name == "xla"
    with pytest.raises(ConfigError, match=reason) as refused:
        choose_backend("pallas", device, sizes)
    assert chosen.reason in str(refused.value)
    assert "--attention-backend pallas cannot serve this" in str(refused.value)
    assert "use --attention-backend auto or xla" in str(refused.value)


def test_a_cpu_is_no_hopper_gpu() -> None:
    with pytest.raises(ConfigError, match=r"capability 9.0\), and this is cpu \(cpu\); use --att"):
        choose_backend("pallas", CPU, LLAMA)


def test_the_config_keeps_auto_only_where_kernels_may_serve() -> None:
    model = ModelConfig.from_hf(LLAMA_3_1_8B)
    backends = [resolve(EngineConfig(), model, device).attention_backend
                for device in (CPU, A100, H100)]  # fmt: skip
    assert backends == ["xla", "xla", "auto"]
    named = EngineConfig(attention_backend="reference")
    assert resolve(named, model, H100).attention_backend == "reference"


def test_sizes_are_those_of_one_shard() -> None:
    model = ModelConfig.from_hf(QWEN_2_5_0_5B)
    config = resolve(EngineConfig(tp_size=2, page_size=32), model, H100)
    found = kernel_shapes(config, model, plan_shards(model, 2), "cuda")
    assert found == shapes(
        num_heads=7, num_kv_heads=1, head_dim=64, page_size=32, hidden_size=896, dtype="bfloat16"
    )  # fmt: skip


# --- checked on the device --------------------------------------------------------------------

Op = Callable[..., Any]


def off_by(tokens: int) -> Op:
    def decode(q, k_pages, v_pages, table, kv_lens, **options):
        lens = jnp.where(kv_lens > 1, kv_lens + tokens, kv_lens)
        return xla.paged_decode_attention(q, k_pages, v_pages, table, lens, **options)

    return decode


def wrong_head(q, k_pages, v_pages, table, kv_lens, **options):
    return xla.paged_decode_attention(
        jnp.roll(q, 1, axis=1), k_pages, v_pages, table, kv_lens, **options
    )


def last_page_lost(q, k_pages, v_pages, table, kv_lens, **options):
    page_size = k_pages.shape[2]
    lens = jnp.where(kv_lens > page_size, kv_lens // page_size * page_size, kv_lens)
    return xla.paged_decode_attention(q, k_pages, v_pages, table, lens, **options)


def padding_not_cleared(q, k_pages, v_pages, table, kv_lens, **options):
    out = xla.paged_decode_attention(q, k_pages, v_pages, table, kv_lens, **options)
    return jnp.where((kv_lens > 0)[:, None, None], out, jnp.ones((), out.dtype))


def not_causal(q, k_pages, v_pages, table, kv_lens, q_starts, **options):
    tokens = jnp.arange(q.shape[0])
    row = jnp.minimum(jnp.searchsorted(q_starts[1:], tokens, side="right"), len(kv_lens) - 1)
    out = xla.paged_decode_attention(q, k_pages, v_pages, table[row], kv_lens[row], **options)
    return jnp.where((tokens < q_starts[-1])[:, None, None], out, jnp.zeros((), out.dtype))


def first_position_lost(q, k_pages, v_pages, table, kv_lens, q_starts, **options):
    return xla.paged_extend_attention(
        q, k_pages, v_pages, table, jnp.maximum(kv_lens - 1, 0), q_starts, **options
    )


def wrong_slot(k_pages, v_pages, k, v, write_slots, **options):
    return xla.write_kv(k_pages, v_pages, k, v, jnp.roll(write_slots, 1), **options)


def norm_of_x(x, delta, weight, *, epsilon):
    total, _ = xla.add_rms_norm(x, delta, weight, epsilon=epsilon)
    return total, xla.add_rms_norm(x, jnp.zeros_like(x), weight, epsilon=epsilon)[1]


def a_part_lost(x, delta, weight, *, epsilon):
    return xla.add_rms_norm(x, delta[1:] if delta.ndim == 3 else delta, weight, epsilon=epsilon)


def raises(*_: object, **__: object) -> None:
    raise NotImplementedError("pallas attention: given a moon; supported stars\nand more")


PLANTED: list[tuple[dict[str, Op], str]] = [
    ({"paged_decode_attention": off_by(-1)}, "decode of row"),
    ({"paged_decode_attention": off_by(1)}, "decode of row"),
    ({"paged_decode_attention": wrong_head}, "decode of row"),
    ({"paged_decode_attention": last_page_lost}, "decode of row"),
    ({"paged_decode_attention": padding_not_cleared}, "decode of row 8 of length 0"),
    ({"paged_extend_attention": not_causal}, "extend of row"),
    ({"paged_extend_attention": first_position_lost}, "extend of row"),
    ({"write_kv": wrong_slot}, "decode of row"),
    ({"add_rms_norm": norm_of_x}, "add_rms_norm of no partial sums differs"),
    ({"add_rms_norm": a_part_lost}, "add_rms_norm of 4 partial sums differs"),
    ({"paged_extend_attention": raises}, "NotImplementedError: pallas attention: given a moon"),
]


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Serve as "pallas" the ops of ``xla``, but for those given."""

    def plant(**ops: Op) -> None:
        names = xla.__all__
        module = SimpleNamespace(**{name: getattr(xla, name) for name in names} | ops)
        monkeypatch.setitem(api.IMPLEMENTATIONS, "pallas", module)

    return plant


@pytest.mark.parametrize(
    ("page_size", "dtype", "kv_dtype"),
    [(16, "float32", "float32"), (64, "bfloat16", "bfloat16"), (32, "float16", "float16"),
     (1, "float32", "float32"), (16, "bfloat16", "uint16"), (16, "bfloat16", "float8_e4m3fn"),
     (32, "float32", "uint8")],
)  # fmt: skip
def test_two_right_implementations_agree(page_size: int, dtype: str, kv_dtype: str) -> None:
    sizes = shapes(page_size=page_size, dtype=dtype, kv_dtype=kv_dtype)
    assert find_problem("reference", sizes) is None


@pytest.mark.parametrize(
    ("ops", "problem"), PLANTED, ids=[next(iter(ops.values())).__qualname__ for ops, _ in PLANTED]
)
def test_a_planted_bug_is_found(plant, ops: dict[str, Op], problem: str) -> None:
    plant(**ops)
    found = find_problem("pallas", shapes(dtype="bfloat16"))
    assert found is not None and problem in found
    assert "and more" not in found, "a message is one line"


def test_what_passes_serves(plant) -> None:
    plant()
    checked = check_backend(KERNELS, "auto", shapes())
    assert checked.name == "pallas"
    assert checked.reason.startswith("Hopper GPU; agrees with xla on random pages, ")


def test_what_fails_under_auto_is_said_loudly_and_replaced(plant, caplog) -> None:
    plant(paged_decode_attention=wrong_head)
    checked = check_backend(KERNELS, "auto", shapes())
    assert checked.name == "xla"
    assert "pallas failed its start-up check: decode of row" in checked.reason
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "THE PALLAS ATTENTION KERNELS ARE WRONG ON THIS DEVICE: decode" in record.getMessage()
    assert "outputs differ by" in record.getMessage()


def test_what_fails_by_name_stops_the_start(plant) -> None:
    plant(paged_decode_attention=wrong_head)
    with pytest.raises(
        ConfigError, match="--attention-backend pallas failed its start-up check.*backend xla"
    ):
        check_backend(KERNELS, "pallas", shapes())


def test_a_hang_stops_the_start_whatever_was_asked_for(plant) -> None:
    plant(write_kv=lambda *_, **__: time.sleep(1.0))
    with pytest.raises(DeviceHangError, match="gave no answer in 0 s.*--attention-backend xla"):
        find_problem("pallas", shapes(), timeout_s=0.05)


@pytest.mark.parametrize("asked", ["auto", "xla", "reference"])
def test_nothing_is_checked_where_no_kernels_serve(plant, asked: str) -> None:
    plant(write_kv=raises)
    model = ModelConfig.from_hf(LLAMA_3_1_8B)
    config = resolve(EngineConfig(attention_backend=asked), model, CPU)
    settled = settle_backend(asked, config, model, plan_shards(model, 1), CPU)
    assert settled.name == ("xla" if asked == "auto" else asked)


def test_a_hopper_gpu_gets_checked_kernels(plant) -> None:
    plant()
    model = ModelConfig.from_hf(LLAMA_3_1_8B | {"num_attention_heads": 4, "head_dim": 64,
                                                "num_key_value_heads": 2})  # fmt: skip
    config = resolve(EngineConfig(), model, H100)
    settled = settle_backend("auto", config, model, plan_shards(model, 1), H100)
    assert settled.name == "pallas"
    assert "agrees with xla" in settled.reason


def test_the_check_leaves_no_array_on_the_device(plant) -> None:
    plant()
    before = {id(array) for array in jax.live_arrays()}
    find_problem("pallas", shapes())
    assert {id(array) for array in jax.live_arrays()} <= before
