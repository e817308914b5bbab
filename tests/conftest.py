"""What every test shares: jax's strict modes, a compilation cache, two small models to load.

The jax flags are set in this process only, never through the environment: a server that a
test launches runs with the flags that a user's server has.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from e2e.live_server import SMALL, LiveServer, launched
from make_tiny_checkpoint import make_tiny_llama

from jaxserve.weights.demo import demo_model_path

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# Eight devices on one host, for tensor parallelism, and so that nothing works only because there
# is a single one.
jax.config.update("jax_num_cpu_devices", 8)
# Most of the suite's time is XLA's; a second run finds its executables here.
CACHE = Path(tempfile.gettempdir()) / f"jaxserve-test-cache-{os.getuid()}"
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip ``gpu`` tests where jax sees no GPU.  Asked only if there is such a test."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and jax.default_backend() != "gpu":
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The demo model's .gguf file, fetched once per machine."""
    return demo_model_path()


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random 2-layer Llama in f32 and a byte tokenizer with a chat template."""
    return make_tiny_llama(tmp_path_factory.mktemp("tiny") / "llama", tokenizer="bytes")


@pytest.fixture(scope="session")
def compilation_cache_dir() -> str:
    """For ``EngineConfig.compilation_cache_dir``: an engine in this process sets the flag too."""
    return str(CACHE)


@pytest.fixture(scope="session")
def demo_server(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """The embedded default model, served once for the whole run.

    ``demo_model`` has only made sure that it is fetched.
    """
    log_path = tmp_path_factory.mktemp("demo-server") / "log"
    with launched(log_path, f"{SMALL} --max-total-tokens 4096") as server:
        yield server
