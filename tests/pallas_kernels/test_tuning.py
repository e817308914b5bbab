"""Configurations: the heuristic's laws, the lookup, and what a tuned file must be."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import tuning
from pallas_kernels.tuning import (
    NUM_SMS,
    SMEM_PER_BLOCK,
    SMEM_PER_SM,
    SMEM_RESERVED,
    AttentionShape,
    DecodeConfig,
    ExtendConfig,
    TuningKey,
    decode_config,
    device_name,
    extend_config,
    fits,
    load_tuned,
    normalised,
    parse_tuned,
    reasoned_decode_config,
    reasoned_extend_config,
    smem_bytes,
)

LLAMA = AttentionShape(32, 32, 8, 128, 16, 128, "bfloat16")
SHAPES = [
    AttentionShape(num_tokens, kv_heads * group, kv_heads, head_dim, page_size, pages, dtype)
    for num_tokens in (1, 7, 32, 256)
    for kv_heads, group in ((8, 4), (1, 8), (2, 7))
    for head_dim in (64, 96, 128, 256)
    for page_size, pages in ((16, 1), (16, 64), (64, 512))
    for dtype in ("bfloat16", "float8_e4m3fn")
]


def test_a_shape_is_read_off_the_arrays() -> None:
    q = jax.ShapeDtypeStruct((32, 32, 128), jnp.bfloat16)
    pool = jax.ShapeDtypeStruct((999, 8, 16, 128), jnp.bfloat16)
    table = jax.ShapeDtypeStruct((32, 128), jnp.int32)
    assert AttentionShape.of(q, pool, table) == LLAMA
    assert (LLAMA.group, LLAMA.context, LLAMA.kv_itemsize) == (4, 2048, 2)


def test_every_reasoned_configuration_can_run() -> None:
    for shape in SHAPES:
        decode, extend = reasoned_decode_config(shape), reasoned_extend_config(shape)
        for config in (decode, extend):
            assert fits(config, shape), shape
            assert smem_bytes(config, shape) <= SMEM_PER_BLOCK, shape
            assert config.block_kv % shape.page_size == 0, shape
        # a split without a tile would only cost
        assert decode.num_splits <= max(1, shape.context // decode.block_kv), shape
        if shape.head_dim <= 128:
            assert 2 * (smem_bytes(decode, shape) + SMEM_RESERVED) <= SMEM_PER_SM, shape


def test_fp8_tiles_are_kept_as_stored_and_wide() -> None:
    """Decode has a ring as stored and one wide tile, extend one as stored and a wide ring."""
    shape = AttentionShape(32, 32, 8, 128, 16, 128, "float8_e4m3fn")
    tile, queries = 64 * 128, 64 * 128 * 2
    config = DecodeConfig(num_splits=1, block_kv=64, num_stages=3)
    assert 0 < smem_bytes(config, shape) - (queries + 2 * (3 * tile + 2 * tile)) < 256
    config = ExtendConfig(block_kv=64, num_stages=3)
    assert 0 < smem_bytes(config, shape) - (2 * queries + 2 * (3 * 2 * tile + tile)) < 256
    # the same bytes in flight take half of the room that 16 bits take
    assert reasoned_decode_config(shape).num_stages >= reasoned_decode_config(LLAMA).num_stages


def test_splits_fill_the_chip_and_no_more() -> None:
    """Many rows need no splits; one row over a long context is spread over all SMs."""
    assert reasoned_decode_config(LLAMA).num_splits == 1
    alone = AttentionShape(1, 32, 8, 128, 16, 512, "bfloat16")
    blocks = reasoned_decode_config(alone).num_splits * alone.num_kv_heads
    assert NUM_SMS <= blocks <= 2 * NUM_SMS
    short = AttentionShape(1, 32, 8, 128, 16, 4, "bfloat16")
    assert reasoned_decode_config(short).num_splits == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DecodeConfig(num_splits=0), "num_splits must be in [1, 128]; got 0"),
        (lambda: DecodeConfig(num_splits=1, block_kv=96), "block_kv must be 64 or 128; got 96"),
        (lambda: DecodeConfig(1, num_stages=1), "num_stages must be in [2, 8]; got 1"),
        (lambda: ExtendConfig(block_q=128), "block_q must be 64; got 128"),
        (lambda: ExtendConfig(block_kv=32), "block_kv must be 64 or 128; got 32"),
    ],
)
def test_messages_of_configurations(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make()


def test_keys_are_size_classes() -> None:
    """Sizes up to a power of two share a key; what changes the kernel does not."""
    key = TuningKey.of_decode(LLAMA)
    assert key == TuningKey("decode", 128, 4, 16, "bfloat16", width=256, context=2048)
    fewer = AttentionShape(17, 32, 8, 128, 16, 65, "bfloat16")
    assert TuningKey.of_decode(fewer) == key
    assert TuningKey.of_decode(AttentionShape(33, 32, 8, 128, 16, 128, "bfloat16")) != key
    assert TuningKey.of_decode(AttentionShape(32, 32, 8, 128, 32, 64, "bfloat16")) != key
    assert TuningKey.of_extend(LLAMA).width == 32


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "nvidia_h100"),
        ("NVIDIA H100 PCIe", "nvidia_h100_pcie"),
        ("NVIDIA H100 NVL", "nvidia_h100_nvl"),
        ("NVIDIA H200", "nvidia_h200"),
        ("NVIDIA GH200 480GB", "nvidia_gh200"),
        ("NVIDIA A100-SXM4-80GB", "nvidia_a100"),
    ],
)
def test_device_names(kind: str, name: str) -> None:
    assert normalised(kind) == name


def test_without_a_gpu_the_target_is_an_h100(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_name() == "nvidia_h100"

    class Device:
        device_kind = "NVIDIA H200"

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [Device()])
    assert device_name() == "nvidia_h200"


def entry(**changes: object) -> dict[str, object]:
    key = {
        "op": "decode", "head_dim": 128, "group": 4, "page_size": 16, "dtype": "bfloat16",
        "width": 256, "context": 2048,
    }  # fmt: skip
    config = {"num_splits": 7, "block_kv": 64, "num_stages": 4}
    return {"key": key, "config": config, "measured": {"us": 1.5}} | changes


def tuned_file(*entries: object, **changes: object) -> dict[str, object]:
    about = {"device": "some_gpu", "jax": "0.10.2", "date": "2026-01-01", "commit": "abc"}
    return about | {"entries": list(entries)} | changes


def test_what_was_measured_goes_before_the_heuristic(tmp_path: Path) -> None:
    extend_key = {**entry()["key"], "op": "extend", "width": 32}
    extend = {"block_q": 64, "block_kv": 64, "num_stages": 4}
    data = tuned_file(entry(), entry(key=extend_key, config=extend))
    (tmp_path / "some_gpu.json").write_text(json.dumps(data))
    assert decode_config(LLAMA, "some_gpu", tmp_path) == DecodeConfig(7, 64, 4)
    assert extend_config(LLAMA, "some_gpu", tmp_path) == ExtendConfig(64, 64, 4)
    other = AttentionShape(32, 32, 8, 128, 64, 128, "bfloat16")
    assert decode_config(other, "some_gpu", tmp_path) == reasoned_decode_config(other)
    assert decode_config(LLAMA, "other_gpu", tmp_path) == reasoned_decode_config(LLAMA)
    assert extend_config(LLAMA, "other_gpu", tmp_path) == reasoned_extend_config(LLAMA)


def test_shipped_files_load() -> None:
    for path in tuning.TUNED.glob("*.json"):
        load_tuned(path.stem)


KEY, CONFIG = entry()["key"], entry()["config"]
KEY_FIELDS = "op, head_dim, group, page_size, dtype, width, context"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            [],
            "the file must have exactly the fields device, jax, date, commit, entries; got []",
        ),
        (
            tuned_file(more=1),
            "the file must have exactly the fields device, jax, date, commit, entries; got "
            "commit, date, device, entries, jax, more",
        ),
        (tuned_file(jax=10), "jax must be a string; got 10"),
        (
            tuned_file(device="nvidia_h200"),
            "device must be 'some_gpu', as the file is named; got 'nvidia_h200'",
        ),
        (tuned_file(entries={}), "entries must be a list; got {}"),
        (
            tuned_file(entry(), 3),
            "entries[1]: the entry must have exactly the fields key, config, measured; got 3",
        ),
        (
            tuned_file(entry(key={"op": "decode"})),
            f"entries[0]: key must have exactly the fields {KEY_FIELDS}; got op",
        ),
        (
            tuned_file(entry(key=KEY | {"op": "write"})),
            "entries[0]: key.op must be one of decode, extend; got 'write'",
        ),
        (
            tuned_file(entry(key=KEY | {"group": "4"})),
            "entries[0]: key.group must be of type int; got '4'",
        ),
        (
            tuned_file(entry(config=CONFIG | {"block_q": 64})),
            "entries[0]: config must have exactly the fields num_splits, block_kv, num_stages; "
            "got block_kv, block_q, num_splits, num_stages",
        ),
        (
            tuned_file(entry(config=CONFIG | {"num_stages": True})),
            "entries[0]: config.num_stages must be of type int; got True",
        ),
        (
            tuned_file(entry(config=CONFIG | {"num_splits": 500})),
            "entries[0]: num_splits must be in [1, 128]; got 500",
        ),
        (
            tuned_file(entry(measured=None)),
            "entries[0]: measured must be an object of figures; got None",
        ),
        (
            tuned_file(entry(), entry()),
            "entries[1]: the key of an earlier entry; keep one of them",
        ),
    ],
)
def test_messages_of_tuned_files(data: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        parse_tuned(data, "some_gpu")


def test_a_broken_file_is_named_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "some_gpu.json"
    path.write_text("{")
    message = (
        f"^{re.escape(str(path))}: .*; make it again with scripts/tune_kernels.py or remove it"
    )
    with pytest.raises(ValueError, match=message):
        load_tuned("some_gpu", tmp_path)
