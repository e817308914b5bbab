"""Bytes on disk → the model's parameters: sources, formats, names.

``resolve_source`` finds a checkpoint, ``load_weights`` puts it on the device.
"""

from jaxserve.weights.loader import load_weights
from jaxserve.weights.source import ModelSource, resolve_source

__all__ = ["ModelSource", "load_weights", "resolve_source"]
