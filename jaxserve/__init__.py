"""jaxserve: an LLM serving engine in JAX.

``LLM`` runs a model in this process; ``python -m jaxserve.launch`` serves one over HTTP.
"""

import importlib
from importlib import metadata
from typing import Any

__all__ = ["LLM", "SamplingParams", "__version__", "errors"]

_HOMES = {"LLM": "jaxserve.llm", "SamplingParams": "jaxserve.request"}


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used.

    ``jaxserve.llm`` imports JAX and transformers, seconds that neither the scheduler's tests nor
    a server that should answer its port at once want to pay for importing this package.
    """
    if name == "__version__":
        return _version()
    if name == "errors":
        return importlib.import_module("jaxserve.errors")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'jaxserve' has no attribute {name!r}")


def _version() -> str:
    try:
        return metadata.version("jaxserve")
    except metadata.PackageNotFoundError:  # run from a source tree that is not installed
        return "unknown"
