"""The tutorials' import path of ``is_in_ci``."""

import os

__all__ = ["is_in_ci"]


def is_in_ci() -> bool:
    """True when a CI system runs this: they all set ``CI``."""
    return os.environ.get("CI", "").lower() in ("1", "true", "yes")
