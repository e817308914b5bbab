"""docs/api.md names every endpoint, every field that is refused and every sampling field."""

import re
from pathlib import Path

import pytest

from jaxserve.config import ServerConfig
from jaxserve.sampling_dict import _FIELDS as SAMPLING_FIELDS
from jaxserve.server.app import make_app
from jaxserve.server.native_types import UNSUPPORTED
from jaxserve.server.openai_types import (
    CHAT_UNSUPPORTED,
    COMPLETION_UNSUPPORTED,
    ChatBody,
    CompletionBody,
)

TEXT = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
NATIVE, OPENAI = (re.split(r"^## /", TEXT, flags=re.MULTILINE))[1:3]


def test_endpoints() -> None:
    routes = make_app(None, ServerConfig()).router.resources()
    paths = {route.canonical for route in routes}
    documented = re.findall(r"^\| (?:GET|POST)[^|]*\| ([^|]*) \|", TEXT, re.MULTILINE)
    assert {path for cell in documented for path in re.findall(r"`([^`]+)`", cell)} == paths


@pytest.mark.parametrize(
    ("section", "names"),
    [
        (NATIVE, UNSUPPORTED),
        (NATIVE, SAMPLING_FIELDS),
        (OPENAI, CHAT_UNSUPPORTED),
        (OPENAI, COMPLETION_UNSUPPORTED),
        (OPENAI, CompletionBody.model_fields),
        (OPENAI, ChatBody.model_fields),
    ],
)
def test_fields(section: str, names: dict[str, object]) -> None:
    assert names.keys() <= set(re.findall(r"`(\w+)`", section)) | {"model"}
