"""``--kv-cache-dtype fp8_e4m3``: half the bytes, and what the model says is nearly the same."""

import statistics
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest
from parity_harness import transformers_logprobs

from jaxserve import LLM
from jaxserve.config import DeviceInfo, EngineConfig, resolve
from jaxserve.errors import ConfigError
from jaxserve.executor import MemoryPlan, plan_memory
from jaxserve.executor.kv_pool import kv_dtype
from jaxserve.model_config import ModelConfig
from jaxserve.weights import resolve_source

PROMPT = "The quick brown fox jumps over the lazy dog"
CPU = DeviceInfo("cpu", "cpu", 8 * 2**30, 2)


def config_of(checkpoint: Path, **fields: Any) -> tuple[EngineConfig, ModelConfig]:
    model = ModelConfig.from_hf(resolve_source(str(checkpoint)).hf_config)
    config = EngineConfig(context_length=128, max_running_requests=64, **fields)
    return resolve(config, model, CPU), model


@pytest.mark.parametrize(
    ("dtype", "asked", "platform", "stored"),
    [
        ("bfloat16", "auto", "cpu", jnp.uint16),
        ("bfloat16", "auto", "cuda", jnp.bfloat16),
        ("float32", "fp8_e4m3", "cpu", jnp.uint8),
        ("bfloat16", "fp8_e4m3", "cuda", jnp.float8_e4m3fn),
    ],
)
def test_what_is_stored(
    tiny_checkpoint: Path, dtype: str, asked: str, platform: str, stored: jnp.dtype
) -> None:
    config, _ = config_of(tiny_checkpoint, dtype=dtype, kv_cache_dtype=asked)
    assert kv_dtype(config, platform) == jnp.dtype(stored)


def test_twice_as_many_tokens_fit(tiny_checkpoint: Path) -> None:
    def plan(asked: str, free_bytes: int) -> MemoryPlan:
        config, model = config_of(
            tiny_checkpoint, dtype="bfloat16", kv_cache_dtype=asked, mem_fraction_static=1.0
        )
        return plan_memory(config, model, weight_bytes=0, free_bytes=free_bytes, platform="cuda")

    sizes = plan("auto", 2**30)
    free_bytes = sizes.slot_bytes + 100 * sizes.page_size * sizes.bytes_per_token
    whole, half = plan("auto", free_bytes), plan("fp8_e4m3", free_bytes)
    assert 2 * half.bytes_per_token == whole.bytes_per_token
    assert half.num_pages == 2 * whole.num_pages == 200


def test_others_are_refused(tiny_checkpoint: Path) -> None:
    message = "--kv-cache-dtype must be one of auto, fp8_e4m3; got 'fp8_e5m2'"
    with pytest.raises(ConfigError, match=message):
        config_of(tiny_checkpoint, kv_cache_dtype="fp8_e5m2")


def test_greedy_text_is_what_the_model_nearly_says(
    tiny_checkpoint: Path, compilation_cache_dir: str
) -> None:
    """Chunks of the prompt and every decode step read what was rounded to e4m3."""
    with LLM(
        str(tiny_checkpoint),
        dtype="float32",
        kv_cache_dtype="fp8_e4m3",
        max_total_tokens=512,
        context_length=128,
        chunked_prefill_size=16,
        max_running_requests=2,
        compilation_cache_dir=compilation_cache_dir,
    ) as llm:
        body = llm.generate(
            PROMPT, {"max_new_tokens": 16, "temperature": 0}, return_logprob=True,
            logprob_start_len=0, return_prompt_token_ids=True,
        )  # fmt: skip
    ids, meta = body["prompt_token_ids"] + body["output_ids"], body["meta_info"]
    table = transformers_logprobs(tiny_checkpoint)(ids)
    got = [entry[0] for entry in (*meta["input_token_logprobs"], *meta["output_token_logprobs"])]
    errors = [abs(got[i] - table[i - 1][ids[i]]) for i in range(1, len(ids))]
    assert 1e-3 < statistics.mean(errors) < 0.2  # f32 pools: 1e-5
    behind_best = table.max(axis=-1)[:-1] - [table[i - 1][ids[i]] for i in range(1, len(ids))]
    assert max(behind_best[-16:]) < 0.5
