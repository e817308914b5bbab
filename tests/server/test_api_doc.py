"""docs/api.md names every endpoint, every field and every field that is refused."""

import re
from pathlib import Path

import pytest

from jaxserve.sampling_dict import FIELDS as SAMPLING_FIELDS
from jaxserve.server.openapi import plain_path
from jaxserve.server.route import Status
from jaxserve.server.routes import ROUTES

TEXT = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
QUOTED = set(re.findall(r"`([^`]+)`", TEXT))


def test_every_endpoint_is_named() -> None:
    assert {plain_path(row.path) for row in ROUTES} <= QUOTED


@pytest.mark.parametrize("row", [row for row in ROUTES if row.refuses], ids=lambda row: row.path)
def test_every_refused_field_is_named(row) -> None:
    sections = re.split(r"\n### ", TEXT)
    (section,) = [s for s in sections if row.path in s.splitlines()[0].split(", ")]
    assert row.refuses.keys() <= set(re.findall(r"`(\w+)`", section))


def test_every_sampling_field_is_named() -> None:
    section = TEXT.split("#### sampling_params")[1].split("\n### ")[0]
    assert SAMPLING_FIELDS.keys() <= set(re.findall(r"`(\w+)`", section))


def test_what_differs_says_how() -> None:
    silent = [row.path for row in ROUTES if row.status is Status.DIFFERS and not row.why]
    assert silent == []
