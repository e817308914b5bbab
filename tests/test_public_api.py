import subprocess
import sys
from importlib import metadata

import pytest

import jaxserve


def test_public_names() -> None:
    assert set(jaxserve.__all__) == {"LLM", "SamplingParams", "__version__", "errors"}
    for name in jaxserve.__all__:
        assert getattr(jaxserve, name) is not None
    assert jaxserve.LLM.__module__ == "jaxserve.llm"
    with pytest.raises(AttributeError, match="module 'jaxserve' has no attribute 'nothing'"):
        _ = jaxserve.nothing


def test_version_is_the_installed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: f"{name} 9")
    assert jaxserve.__version__ == "jaxserve 9"

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert jaxserve.__version__ == "unknown"


def output_of(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout.strip()


def test_importing_the_package_loads_no_heavy_library() -> None:
    heavy = "{'jax', 'torch', 'transformers', 'numpy'}"
    assert output_of(f"import sys, jaxserve; print({heavy} & set(sys.modules))") == "set()"


def test_text_needs_neither_jax_nor_torch() -> None:
    code = "import sys, jaxserve.text; print({'jax', 'torch'} & set(sys.modules))"
    assert output_of(code) == "set()"


def test_nobody_is_told_that_torch_is_missing() -> None:
    assert output_of("import sys; sys.modules['torch'] = None; import jaxserve.text") == ""
