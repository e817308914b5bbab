#!/usr/bin/env python3
"""Write the generated parts of docs/api.md and docs/operations.md.

A document has prose and blocks: what stands between `<!-- generated: NAME -->` and
`<!-- end -->` is written by the function of that name below, from the code itself.

    scripts/generate_docs.py            write
    scripts/generate_docs.py --check    exit with 1 if a document is not what would be written
"""

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields
from itertools import chain, groupby
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from jaxserve import foreign_flags
from jaxserve.config import EngineConfig, ServerConfig
from jaxserve.flag_tables import ALIASES, CHOICES, DEFAULTS, ENVIRONMENT, GROUPS, HELP
from jaxserve.metrics import Metrics
from jaxserve.parsers import REASONING_FORMATS, TOOL_FORMATS
from jaxserve.server.native_types import GenerateBody
from jaxserve.server.openai_types import CommonBody
from jaxserve.server.openapi import CONTROL_TAG, TAGS, plain_path
from jaxserve.server.route import Auth, Route, Status
from jaxserve.server.routes import ROUTES
from jaxserve.stats_metrics import ALWAYS_ZERO, NOT_EMITTED

ROOT = Path(__file__).parent.parent
DOCUMENTS = ("docs/api.md", "docs/operations.md")
BLOCK = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
NAMES = re.compile(r"(?<![\w`])(--[a-z][a-z0-9-]+|/[a-z_]\w*(?:/\w+)*(?:\.json|\*)?)")
KEYS = {Auth.OPEN: "–", Auth.NORMAL: "API", Auth.ADMIN: "admin"}


def regenerate(text: str) -> str:
    """``text`` with every block as the code has it now."""
    return BLOCK.sub(lambda found: f"{found[1]}\n{BLOCKS[found[2]]()}\n\n{found[3]}", text)


def table(header: str, rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; ``header`` is ``a | b | c``."""
    lines = [f"| {header} |", "|" + "---|" * (header.count("|") + 1)]
    lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return "\n".join(lines)


# --- docs/api.md ---


def endpoints() -> str:
    """The conformance table: one part per API."""
    parts = []
    for tag, rows in _by_tag(row for row in ROUTES if row.status is not Status.REFUSED):
        cells = (
            (", ".join(row.methods), f"`{plain_path(row.path)}`", KEYS[row.auth],
             row.status.value, " ".join(filter(None, (row.summary, row.why))))
            for row in rows
        )  # fmt: skip
        parts.append(f"### {tag}\n\n" + table("method | path | key | conforms | ", cells))
    return "\n\n".join(parts)


def refused() -> str:
    """The endpoints that answer with what they lack."""
    rows = [row for row in ROUTES if row.status is Status.REFUSED]
    lacks = dict.fromkeys(row.why for row in rows)
    cells = (
        (why, ", ".join(f"`{plain_path(row.path)}`" for row in rows if row.why == why),
         "400" if any(row.body is not None for row in rows if row.why == why) else "501")
        for why in lacks
    )  # fmt: skip
    return table("why | paths | status", cells)


def bodies() -> str:
    """The fields of every request body that has a type of its own."""
    common = _schema(CommonBody)
    parts = ["### Common to OpenAI's and Anthropic's endpoints", _fields(common)]
    for row in _first_of_each_body():
        schema = _schema(row.body)
        inherits = issubclass(row.body, CommonBody)
        paths = (plain_path(other.path) for other in ROUTES if other.body is row.body)
        parts.append(f"### {', '.join(paths)}")
        if inherits:
            parts.append("The common fields, and:")
        parts.append(_fields(schema, without=common["properties"] if inherits else {}))
        if row.body is GenerateBody:
            parts.append("#### sampling_params\n\n" + _fields(schema["$defs"]["SamplingBody"]))
        if row.refuses:
            parts.append(_refused_fields(row.refuses))
    return "\n\n".join(parts)


def formats() -> str:
    """The names of the parsers."""
    reasoning, tools = (", ".join(f"`{name}`" for name in sorted(names))
                        for names in (REASONING_FORMATS, TOOL_FORMATS))  # fmt: skip
    return f"* `--reasoning-parser`: `auto`, {reasoning}.\n* `--tool-call-parser`: `auto`, {tools}."


def _by_tag(rows: Iterable[Route]) -> Iterator[tuple[str, list[Route]]]:
    order = [*TAGS.values(), CONTROL_TAG]

    def tag(row: Route) -> str:
        return CONTROL_TAG if row.auth is Auth.ADMIN else TAGS[row.dialect]

    for name, group in groupby(sorted(rows, key=lambda row: order.index(tag(row))), tag):
        yield name, list(group)


def _first_of_each_body() -> Iterator[Route]:
    seen: set[Any] = set()
    for row in ROUTES:
        if isinstance(row.body, type) and row.body is not dict and row.body not in seen:
            if row.status is Status.REFUSED or "properties" not in _schema(row.body):
                continue
            seen.add(row.body)
            yield row


def _schema(body: Any) -> Mapping[str, Any]:
    return TypeAdapter(body).json_schema()


def _fields(schema: Mapping[str, Any], without: Mapping[str, Any] | None = None) -> str:
    """A row per field that is not the same in ``without``."""
    required = schema.get("required", ())
    same = {name for name, field in (without or {}).items() if schema["properties"][name] == field}
    return table(
        "field | type | default | ",
        (
            (f"`{name}`", _kind(field), "required" if name in required else _default(field),
             " ".join(filter(None, (_range(field), field.get("description", "")))))
            for name, field in schema["properties"].items()
            if name not in same
        ),
    )  # fmt: skip


def _kind(field: Mapping[str, Any]) -> str:
    if "$ref" in field:
        return "object"
    if "anyOf" in field:
        kinds = dict.fromkeys(_kind(choice) for choice in field["anyOf"])
        return " or ".join(kind for kind in kinds if kind != "null") or "null"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    if field.get("type") == "array":
        return f"[{_kind(field.get('items', {}))}]"
    names = {"boolean": "bool", "integer": "int", "number": "float"}
    return names.get(field.get("type", "any"), field.get("type", "any"))


def _default(field: Mapping[str, Any]) -> str:
    value = field.get("default")
    return "" if value in (None, [], {}, "") else f"`{json.dumps(value)}`"


def _range(field: Mapping[str, Any]) -> str:
    for choice in (field, *field.get("anyOf", ())):
        low = _bound(choice, "minimum", "≥", "exclusiveMinimum", ">")
        high = _bound(choice, "maximum", "≤", "exclusiveMaximum", "<")
        if low or high:
            return f"{', '.join(filter(None, (low, high)))}."
    return ""


def _bound(field: Mapping[str, Any], closed: str, sign: str, opened: str, strict: str) -> str:
    if closed in field:
        return f"{sign} {field[closed]:g}"
    return f"{strict} {field[opened]:g}" if opened in field else ""


def _refused_fields(refuses: Mapping[str, str]) -> str:
    reasons: dict[str, list[str]] = {}
    for name, reason in refuses.items():
        reasons.setdefault(reason, []).append(f"`{name}`")
    listed = "; ".join(f"{', '.join(names)} ({reason})" for reason, names in reasons.items())
    return f"Refused when they ask for something (**400**): {listed.replace('.)', ')')}."


# --- docs/operations.md ---


def flags() -> str:
    """Every flag, under its heading."""
    items = {item.name: item for config in (EngineConfig, ServerConfig) for item in fields(config)}
    parts = []
    for title, names in GROUPS.items():
        rows = ((_flag(name), _flag_default(items[name]), _flag_text(name)) for name in names)
        parts.append(f"### {title}\n\n" + table("flag | default | meaning", rows))
    return "\n\n".join(parts)


def foreign() -> str:
    """SGLang's flags that there are not."""
    parts = [
        table("taken, with a warning | because", _foreign(foreign_flags.NO_EFFECT)),
        table("refused by name | because", _foreign(foreign_flags.REFUSED)),
    ]
    families: dict[str, list[str]] = {}
    for prefix, reason in foreign_flags.FAMILIES.items():
        families.setdefault(reason, []).append(f"{prefix}…")
    rows = ((", ".join(f"--{name}" for name in names), why) for why, names in families.items())
    return "\n\n".join([*parts, table("families, refused | because", rows)])


def metrics() -> str:
    """Every metric and what it counts; SGLang's that are always 0 or not there, and why."""
    rows: list[tuple[str, str]] = []
    zeros = set(chain(*ALWAYS_ZERO.values()))
    for family in Metrics("m").registry.collect():
        if family.name.partition(":")[2] in zeros:
            continue
        name = f"{family.name}_total" if family.type == "counter" else family.name
        rows.append((f"`{name}`", f"{family.documentation} ({family.type})"))
    return "\n\n".join(
        (
            table("metric | ", sorted(rows)),
            table("always 0, for SGLang's dashboards | because", _names(ALWAYS_ZERO)),
            table("SGLang's, not emitted | because", _names(NOT_EMITTED)),
        )
    )


def _names(reasons: Mapping[str, tuple[str, ...]]) -> Iterator[tuple[str, str]]:
    for reason, names in reasons.items():
        yield ", ".join(f"`sglang:{name}`" for name in names), reason


def _flag(name: str) -> str:
    flag = f"`--{name.replace('_', '-')}`"
    return f"{flag} (`{ALIASES[name]}`)" if name in ALIASES else flag


def _flag_default(item: Any) -> str:
    if item.type is bool:
        return "on" if item.default else "off"
    return str(DEFAULTS.get(item.name, "none" if item.default in (None, "") else item.default))


def _flag_text(name: str) -> str:
    text = re.sub(
        r"(?<![\w`])(--[a-z][a-z0-9-]+|/[a-z_]\w*(?:/\w+)*(?:\.json|\*)?)", r"`\1`", HELP[name]
    )
    if name in CHOICES:
        text += f" ({', '.join(f'`{choice}`' for choice in CHOICES[name])})"
    if name in ENVIRONMENT:
        text += f" (environment: `{ENVIRONMENT[name]}`)"
    return text


def _foreign(reasons: Mapping[str, tuple[str, ...]]) -> Iterator[tuple[str, str]]:
    for reason, names in reasons.items():
        yield ", ".join(f"--{name.partition('=')[0]}" for name in names), reason


BLOCKS: Mapping[str, Callable[[], str]] = {
    function.__name__: function
    for function in (endpoints, refused, bodies, formats, flags, foreign, metrics)
}


def main(arguments: list[str]) -> int:
    """Write, or with ``--check`` compare."""
    stale = []
    for name in DOCUMENTS:
        path = ROOT / name
        text = path.read_text()
        if (new := regenerate(text)) != text:
            stale.append(name)
            if "--check" not in arguments:
                path.write_text(new)
    print("\n".join(stale) or "all documents are current")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
