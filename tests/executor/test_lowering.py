"""The step as CUDA would get it, lowered on any machine: nothing here needs a GPU."""

import re
from pathlib import Path

import jax
import pytest

from jaxserve.batch import Bucket, Mode
from jaxserve.config import DeviceInfo, EngineConfig, resolve
from jaxserve.executor import ModelRunner, build_runner
from jaxserve.model_config import ModelConfig
from jaxserve.weights import resolve_source

CUDA = DeviceInfo("cuda", "NVIDIA H100", 80 * 2**30, 16)
BUCKETS = (Bucket(Mode.DECODE, 4, 4, 8), Bucket(Mode.EXTEND, 32, 2, 8))


@pytest.fixture(scope="module")
def runner(tiny_checkpoint: Path) -> ModelRunner:
    """What ``build_runner`` makes on an NVIDIA GPU, its arrays on this machine's device."""
    source = resolve_source(str(tiny_checkpoint))
    model_config = ModelConfig.from_hf(source.hf_config)
    config = EngineConfig(dtype="bfloat16", max_running_requests=4, context_length=128)
    config = resolve(config, model_config, CUDA)
    return build_runner(config, model_config, source, CUDA, num_pages=64, buckets=())


@pytest.fixture(scope="module", params=BUCKETS, ids=["decode", "extend"])
def program(request: pytest.FixtureRequest, runner: ModelRunner) -> str:
    """StableHLO of one bucket's step."""
    return runner.lower_step(request.param, platforms=("cuda",)).as_text()


def test_the_state_is_donated(runner: ModelRunner, program: str) -> None:
    (main,) = re.findall(r"func\.func public @main\((.*)\) -> ", program)
    outputs = re.findall(r"tf\.aliasing_output = (\d+)", main)
    assert outputs == [str(index) for index in range(len(jax.tree.leaves(runner._state)))]


def test_weights_and_pool_are_used_in_bf16(runner: ModelRunner, program: str) -> None:
    """No array of the shape of a weight or a pool in another dtype: none is converted."""
    arrays = [leaf for leaf in runner._leaves if leaf.ndim == 2] + [runner._state.kv.k[0]]
    for array in arrays:
        shape = "x".join(map(str, array.shape))
        assert set(re.findall(rf"tensor<{shape}x(\w+)>", program)) == {"bf16"}


def test_the_branch_for_cpus_is_left_out(runner: ModelRunner) -> None:
    """The sampler truncates by ``top_k`` on CPUs and by bisection elsewhere: never both."""
    texts = [runner.lower_step(BUCKETS[0], platforms=(name,)).as_text() for name in ("cpu", "cuda")]
    on_cpu, on_cuda = (text.count("chlo.top_k") for text in texts)
    assert on_cuda < on_cpu


def test_logits_are_never_rounded_to_bf16(runner: ModelRunner, program: str) -> None:
    vocab_size = runner._state.slots.token_info.shape[1]
    assert set(re.findall(rf"tensor<\d+x{vocab_size}x(b?f\d+)>", program)) == {"f32"}
