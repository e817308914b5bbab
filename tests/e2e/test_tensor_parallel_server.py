"""``--tp-size`` from the command line to the tokens, on CPU devices that XLA is told to make."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from e2e.live_server import SMALL, LiveServer, failed_start, launched
from engine_harness import running_engine
from make_tiny_checkpoint import make_tiny

from jaxserve.request import SamplingParams

NUM_NEW = 12
PROMPTS = [
    np.random.default_rng(seed).integers(0, 256, length).tolist()
    for seed, length in enumerate((3, 17, 40, 70, 16, 33, 5, 90))
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tp")
    return make_tiny(folder, "qwen3", tokenizer="bytes", vocab_size=264)


@pytest.fixture(scope="module")
def server(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    flags = (
        f"--model-path {checkpoint} {SMALL} --max-total-tokens 2048 --dtype float32 "
        "--chunked-prefill-size 64 --precompile-token-paddings 64 --precompile-bs-paddings 8"
    )
    log_path = tmp_path_factory.mktemp("tp-server") / "log"
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:  # only of this process's child
            patch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
            server = stack.enter_context(launched(log_path, f"{flags} --tensor-parallel-size 2"))
        yield server


def test_a_crowd_gets_the_tokens_that_one_device_gives(
    server: LiveServer, checkpoint: Path, compilation_cache_dir: str
) -> None:
    params = {"max_new_tokens": NUM_NEW, "temperature": 0, "ignore_eos": True}
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        answers = pool.map(
            lambda prompt: server.generate(input_ids=prompt, sampling_params=params), PROMPTS
        )
        ours = [answer["output_ids"] for answer in answers]
    greedy = SamplingParams(max_new_tokens=NUM_NEW, temperature=0.0, ignore_eos=True, seed=0)
    with running_engine(checkpoint, compilation_cache_dir) as engine:
        wanted = [output.tokens for output in engine.run(PROMPTS, greedy)]
    assert ours == wanted
    assert "was compiled after warm-up" not in server.log


def test_the_server_says_how_many_devices_it_uses(server: LiveServer) -> None:
    info = server.get("/server_info").json()
    assert (info["tp_size"], info["internal_states"][0]["world_size"]) == (2, 2)


def test_more_devices_than_there_are(checkpoint: Path) -> None:
    status, line = failed_start(["--model-path", str(checkpoint), "--tp-size", "2"])
    assert status == 1
    assert line == (
        "jaxserve: error: --tp-size 2 needs as many devices, and 1 of cpu (cpu) are visible; "
        "choose a smaller one, or make more visible (CUDA_VISIBLE_DEVICES)"
    )


def test_a_number_that_does_not_divide_the_model(checkpoint: Path) -> None:
    status, line = failed_start(["--model-path", str(checkpoint), "--tp-size", "3"])
    assert status == 1
    assert line == (
        "jaxserve: error: --tp-size 3 does not divide this model: intermediate_size 128 is not a "
        "multiple of it; allowed: 1, 2, 4"
    )
