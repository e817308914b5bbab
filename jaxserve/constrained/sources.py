"""A request's grammar, written in llguidance's language."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from llguidance import LLMatcher, regex_to_lark

from jaxserve.constrained.ebnf import ebnf_to_lark
from jaxserve.constrained.problems import Path, pointer
from jaxserve.constrained.schema import check_schema, parse_json
from jaxserve.constrained.structural_tag import structural_tag_to_grammars
from jaxserve.errors import ConfigError, InvalidRequestError
from jaxserve.request import Grammar

MAX_SOURCE_BYTES = 1 << 19
ANY_OBJECT = "$$ANY$$"  # SGLang's name for any JSON object
# Without a bound a model may write white space until its tokens are spent.
BOUNDED_WHITESPACE = r"[\x20\x0A\x0D\x09]{1,64}"
_LARK = re.compile(r"^\s*(%llguidance\b|start(\.\w+)?\s*:(?!:=))", re.MULTILINE)

_LARK_PLACE = re.compile(r"(?:at )?(?P<line>\d+)\((?P<column>\d+)\): (?P<problem>.*)")


@dataclass(frozen=True, slots=True)
class JsonStyle:
    """How JSON may be written: a regex for its white space, or none at all."""

    whitespace_pattern: str | None = None
    disable_any_whitespace: bool = False

    def __post_init__(self) -> None:
        if self.whitespace_pattern is None:
            return
        if self.disable_any_whitespace:
            raise ConfigError(
                "--constrained-json-disable-any-whitespace leaves no white space for "
                "--constrained-json-whitespace-pattern to describe; give one of them"
            )
        error = LLMatcher.validate_grammar(
            json.dumps({"grammars": [{"json_schema": {"x-guidance": self.options}}]})
        )
        if error:
            raise ConfigError(
                f"--constrained-json-whitespace-pattern {self.whitespace_pattern!r} is not a "
                f"regex: {_short(error)}"
            )

    @property
    def options(self) -> dict[str, Any]:
        """The same for llguidance."""
        if self.disable_any_whitespace:
            return {"whitespace_flexible": False}
        return {"whitespace_pattern": self.whitespace_pattern or BOUNDED_WHITESPACE}


@dataclass(frozen=True, slots=True)
class Translator:
    """Translates grammars; ``error_of`` compiles a llguidance grammar and returns what is wrong."""

    style: JsonStyle
    error_of: Callable[[str], str]
    special_tokens: Mapping[str, int] = field(default_factory=dict)

    def translate(self, grammar: Grammar) -> str:
        """``grammar`` for llguidance, compiled once to see that it can be.

        Raises:
            InvalidRequestError: it is wrong or cannot be enforced; says where.
        """
        size = len(grammar.source.encode(errors="replace"))
        if size > MAX_SOURCE_BYTES:
            raise InvalidRequestError(
                f"the {grammar.kind} has {size} bytes; at most {MAX_SOURCE_BYTES} are allowed"
            )
        if grammar.kind == "structural_tag":
            grammars = structural_tag_to_grammars(grammar.source, self.special_tokens, self._embed)
            text = json.dumps({"grammars": grammars})
            self._demand(text, "structural_tag", ())
            return text
        return json.dumps({"grammars": [self._embed(grammar.kind, grammar.source, ())]})

    def _embed(self, kind: str, source: str, at: Path) -> dict[str, Any]:
        if kind == "json_schema":
            return self._schema(source, at)
        if kind == "regex":
            part = {"lark_grammar": f"start: /{self._regex(source, at)}/"}
        else:
            part = {"lark_grammar": source if _LARK.search(source) else ebnf_to_lark(source)}
        self._demand(json.dumps({"grammars": [part]}), kind, at)
        return part

    def _demand(self, text: str, kind: str, at: Path) -> None:
        error = self.error_of(text)
        if error:
            place = f" at {pointer(at)}" if at else ""
            raise InvalidRequestError(f"invalid {kind}{place}: {_short(error)}")

    def _regex(self, source: str, at: Path) -> str:
        if (len(source) - len(source.rstrip("\\"))) % 2:
            raise InvalidRequestError(
                f"invalid regex at position {len(source) - 1}: nothing follows the backslash"
            )
        return regex_to_lark(source, "dws")

    def _schema(self, source: str, at: Path) -> dict[str, Any]:
        schema = {"type": "object"} if source == ANY_OBJECT else parse_json("json_schema", source)
        checked = check_schema(schema, at)

        def part(schema: Any) -> dict[str, Any]:
            as_object = schema if isinstance(schema, dict) else {"allOf": [schema]}
            return {"json_schema": {**as_object, "x-guidance": self.style.options}}

        def error_of(schema: Any) -> str:
            return self.error_of(json.dumps({"grammars": [part(schema)]}))

        error = error_of(checked.schema)
        if error:
            place, error = checked.locate(error, error_of)
            raise InvalidRequestError(
                f"invalid json_schema at {pointer((*at, *place))}: {_short(error)}"
            )
        return part(checked.schema)


def _short(error: str) -> str:
    """llguidance's message in one line, with a position in place of its drawing of one."""
    lines = re.split(r"<state>|<non-verbose/>|\n  while processing", error)[0].rstrip().splitlines()
    marked = [i for i, line in enumerate(lines) if line.strip() and not line.strip(" ^")]
    causes = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if causes and marked and marked[0] > 0:
        pattern = lines[marked[0] - 1].strip()
        position = lines[marked[0]].index("^") - 4
        return f"{causes[0]} (position {position} of the pattern {pattern:.80})"
    found = _LARK_PLACE.match(lines[0]) if lines else None
    if found is not None:  # the rest is a drawing of the place
        return f"{found['problem'][:400]} (line {found['line']}, column {found['column']})"
    return " ".join(line.strip() for line in lines)[:500]
