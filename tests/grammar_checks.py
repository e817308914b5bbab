"""Opinions on outputs of the suite's grammars that owe nothing to llguidance."""

import base64
import ipaddress
import json
import re
from datetime import date
from typing import Any
from urllib.parse import urlsplit

from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.validators import validator_for

formats = FormatChecker()


@formats.checks("date-time", raises=ValueError)
def is_date_time(text: str) -> bool:
    day, _, clock = text.upper().partition("T")
    return is_date(day) and is_time(clock)


@formats.checks("date", raises=ValueError)
def is_date(text: str) -> bool:
    leap_year_0 = text.replace("0000-", "2000-", 1)  # Python's years begin at 1
    return isinstance(date.fromisoformat(leap_year_0), date)


@formats.checks("time")
def is_time(text: str) -> bool:
    clock = r"([01]\d|2[0-3]):[0-5]\d:([0-5]\d|60)(\.\d+)?"
    return re.fullmatch(clock + r"([Zz]|[+-]([01]\d|2[0-3]):[0-5]\d)", text) is not None


@formats.checks("duration")
def is_duration(text: str) -> bool:
    day = r"(\d+Y)?(\d+M)?(\d+D)?"
    return re.fullmatch(rf"P(?!$)(\d+W|{day}(T(?=\d)(\d+H)?(\d+M)?(\d+S)?)?)", text) is not None


@formats.checks("hostname")
def is_hostname(text: str) -> bool:
    label = "[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
    return re.fullmatch(rf"{label}(\.{label})*", text) is not None


@formats.checks("ipv6", raises=ValueError)
def is_ipv6(text: str) -> bool:
    return ipaddress.IPv6Address(text) is not None


@formats.checks("uri", raises=ValueError)
@formats.checks("iri", raises=ValueError)
@formats.checks("uri-reference", raises=ValueError)
def is_uri(text: str) -> bool:
    return " " not in text and bool(urlsplit(text).scheme)


@formats.checks("byte", raises=ValueError)
def is_base64(text: str) -> bool:
    return base64.b64decode(text, validate=True) is not None


@formats.checks("json-pointer")
def is_pointer(text: str) -> bool:
    return re.fullmatch(r"(/([^~/]|~[01])*)*", text) is not None


@formats.checks("relative-json-pointer")
def is_relative_pointer(text: str) -> bool:
    return re.fullmatch(r"(0|[1-9]\d*)(#|(/([^~/]|~[01])*)*)", text) is not None


def check_output(file: str, case: dict[str, Any], text: str) -> None:
    """Raise unless ``text`` is an output of this record of ``suite/{file}.jsonl``."""
    if file == "schemas":
        schema = case["schema"]
        validator = validator_for(schema, Draft202012Validator)
        validator(schema, format_checker=formats).validate(json.loads(text))
    elif file == "regexes":
        _check_regex(case["regex"], text)
    else:
        _check(case["check"], text)


def _check_regex(regex: str, text: str) -> None:
    if "[[:" in regex or r"\p{" in regex:  # Python's re has neither
        return
    flags = 0 if "(?i)" in regex else re.ASCII
    assert re.compile(regex, flags).fullmatch(text), text


def _check(rule: dict[str, Any], text: str) -> None:
    if "json" in rule:
        json.loads(text)
    if "regex" in rule:
        assert re.fullmatch(rule["regex"], text, re.DOTALL), text
    if "python" in rule:
        compile(text.strip(), "output", rule["python"])
    if "balanced" in rule:
        opening, closing = rule["balanced"]
        depth = 0
        for character in text:
            depth += (character == opening) - (character == closing)
            assert depth >= 0, text
        assert depth == 0, text
    for begin, schema, end in rule.get("inside", ()):
        for body in re.findall(f"{re.escape(begin)}(.*?){re.escape(end)}", text, re.DOTALL):
            Draft202012Validator(schema).validate(json.loads(body))
