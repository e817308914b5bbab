"""Structural tags: free text in which marked parts follow a grammar.

Both of SGLang's forms: ``{"structures": [{"begin", "schema", "end"}], "triggers": […]}`` and
xgrammar's ``{"type": "structural_tag", "format": {…}}``.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from jaxserve.constrained.problems import Path, refuse
from jaxserve.constrained.schema import parse_json

KIND = "structural_tag"
MAX_DEPTH = 30
TEXT = "/(?s:.*)/"
Embed = Callable[[str, str, Path], dict[str, Any]]


def structural_tag_to_grammars(
    source: str, special_tokens: Mapping[str, int], embed: Embed
) -> list[dict[str, Any]]:
    """The grammars of llguidance, the first of which is the start.

    Args:
        special_tokens: text → id; where a literal holds such a text, that token must come.
        embed: (kind, source, place) → the grammar of a part.

    Raises:
        InvalidRequestError: a part that is wrong or cannot be enforced, and where it is.
    """
    document = parse_json(KIND, source)
    if not isinstance(document, dict):
        refuse(KIND, (), f"it must be an object; got {document!r:.80}")
    writer = _Writer(special_tokens, embed)
    at: Path = ()
    if "structures" in document or "triggers" in document:
        writer.places.update(_legacy_places(document))
        root = _from_legacy(document)
    elif "format" in document:
        root = document["format"]
        at = ("format",)
    else:
        refuse(KIND, (), "it needs either format, or structures and triggers")
    return writer.grammars(root, at)


def _from_legacy(document: dict[str, Any]) -> dict[str, Any]:
    tags = []
    for i, item in enumerate(_field(document, "structures", list, ())):
        at: Path = ("structures", i)
        schema = item.get("schema", item.get("schema_")) if isinstance(item, dict) else None
        if schema is None:
            refuse(KIND, at, "a structure has begin, schema and end")
        if isinstance(schema, str):
            schema = parse_json(KIND, schema)
        content = {"type": "json_schema", "json_schema": schema}
        tags.append({"begin": _field(item, "begin", str, at), "content": content,
                     "end": _field(item, "end", str, at)})  # fmt: skip
    return {"type": "triggered_tags", "triggers": document.get("triggers"), "tags": tags}


def _legacy_places(document: dict[str, Any]) -> dict[Path, Path]:
    """Where the content of each tag came from."""
    count = len(document.get("structures") or ())
    return {("tags", i, "content"): ("structures", i, "schema") for i in range(count)}


def _field(holder: Any, name: str, wanted: type, at: Path, default: Any = None) -> Any:
    if not isinstance(holder, dict):
        refuse(KIND, at, f"it must be an object; got {holder!r:.80}")
    value = holder.get(name, default)
    if not isinstance(value, wanted):
        given = f"got {value!r:.80}" if name in holder else "it is missing"
        refuse(KIND, (*at, name), f"{name} must be {NAMES[wanted]}; {given}")
    return value


NAMES = {str: "a string", list: "a list", dict: "an object", bool: "true or false", int: "a number"}


class _Writer:
    """Writes rules; each method of a format returns the words that stand for it."""

    def __init__(self, special_tokens: Mapping[str, int], embed: Embed) -> None:
        self._special = sorted(special_tokens.items(), key=lambda item: -len(item[0]))
        self._embed = embed
        self._lines: list[str] = []
        self._parts: list[dict[str, Any]] = []
        self._num_rules = 0
        self.places: dict[Path, Path] = {}  # where a part stands in the user's own document

    def grammars(self, root: Any, at: Path) -> list[dict[str, Any]]:
        start = self._format(root, at, 0)
        lark = "\n".join(["%llguidance {}", f"start: {start}", f"TEXT: {TEXT}", *self._lines])
        return [{"name": "tags", "lark_grammar": lark + "\n"}, *self._parts]

    def _format(self, format: Any, at: Path, depth: int) -> str:
        kind = _field(format, "type", str, at)
        if depth > MAX_DEPTH:
            refuse(KIND, at, f"formats may be nested {MAX_DEPTH} deep")
        write = WRITERS.get(kind)
        if write is None:
            refuse(KIND, at, f"format {kind!r} cannot be enforced; use one of {', '.join(WRITERS)}")
        return write(self, format, at, depth + 1)

    def _rule(self, body: str, modifier: str = "") -> str:
        self._num_rules += 1
        name = f"rule_{self._num_rules}"
        self._lines.append(f"{name}{modifier}: {body}")
        return name

    def _terminal(self, body: str) -> str:
        self._num_rules += 1
        self._lines.append(f"PART_{self._num_rules}: {body}")
        return f"PART_{self._num_rules}"

    def _words(self, text: str) -> list[str]:
        """A literal, cut where a special token's text stands in it."""
        for name, token_id in self._special:
            before, found, after = text.partition(name)
            if found:
                return [*self._words(before), f"<[{token_id}]>", *self._words(after)]
        return [json.dumps(text, ensure_ascii=False)] if text else []

    def _literal(self, text: str) -> str:
        return " ".join(self._words(text)) or '""'

    def _until(self, text_terminal: str, end: str) -> str:
        """Free text that ends where ``end`` first comes."""
        first, *rest = self._words(end)
        lazy = "" if first.startswith("<") else "[lazy]"  # a special token is never in the text
        return " ".join((self._rule(f"{text_terminal} {first}", lazy), *rest))

    def _text(self, format: Any, at: Path) -> str:
        excluded = [text for text in _field(format, "excludes", list, at, []) if text]
        if not all(isinstance(text, str) for text in excluded):
            refuse(KIND, (*at, "excludes"), "excludes must be a list of strings")
        if not excluded:
            return "TEXT"
        words = " | ".join(json.dumps(text, ensure_ascii=False) for text in excluded)
        banned = self._terminal(f"{TEXT} ({words}) {TEXT}")
        return self._terminal(f"{TEXT} & ~{banned}")

    def any_text(self, format: Any, at: Path, depth: int) -> str:
        return self._text(format, at)

    def const_string(self, format: Any, at: Path, depth: int) -> str:
        return self._literal(_field(format, "value", str, at))

    def embedded(self, format: Any, at: Path, depth: int) -> str:
        kind, field = {
            "json_schema": ("json_schema", "json_schema"),
            "regex": ("regex", "pattern"),
            "grammar": ("ebnf", "grammar"),
        }[format["type"]]
        if kind == "json_schema":
            if format.get("style", "json") != "json":
                refuse(KIND, (*at, "style"), f"style {format['style']!r} cannot be enforced; "
                       "use 'json'")  # fmt: skip
            source = json.dumps(format.get(field, True))
        else:
            source = _field(format, field, str, at)
        name = f"part_{len(self._parts)}"
        self._parts.append(
            {**self._embed(kind, source, self.places.get(at, (*at, field))), "name": name}
        )
        return f"@{name}"

    def sequence(self, format: Any, at: Path, depth: int) -> str:
        elements = _field(format, "elements", list, at)
        words: list[str] = []
        i = 0
        while i < len(elements):
            here = (*at, "elements", i)
            following = elements[i + 1] if i + 1 < len(elements) else None
            if following is not None and _is_text(elements[i]):
                if not isinstance(following, dict) or following.get("type") != "const_string":
                    refuse(KIND, here, "any_text must come last or before a const_string")
                end = _field(following, "value", str, (*at, "elements", i + 1))
                words.append(self._until(self._text(elements[i], here), end) if end else "TEXT")
                i += 2
                continue
            words.append(self._format(elements[i], here, depth))
            i += 1
        return self._rule(" ".join(words) or '""')

    def choice(self, format: Any, at: Path, depth: int) -> str:
        elements = _field(format, "elements", list, at)
        if not elements:
            refuse(KIND, (*at, "elements"), "elements must hold at least one format")
        return self._rule(" | ".join(
            self._format(element, (*at, "elements", i), depth) for i, element in enumerate(elements)
        ))  # fmt: skip

    def repeat(self, format: Any, at: Path, depth: int) -> str:
        content = self._rule(
            self._format(_field(format, "content", dict, at), (*at, "content"), depth)
        )
        if format["type"] == "repeat":
            least = _field(format, "min", int, at)
            most = _field(format, "max", int, at)
            bounds = f"{{{least},{'' if most < 0 else most}}}"
        else:
            bounds = {"optional": "?", "star": "*", "plus": "+"}[format["type"]]
        return content + bounds

    def tag(self, format: Any, at: Path, depth: int) -> str:
        return self._rule(f"{self._literal(_field(format, 'begin', str, at))} "
                          f"{self._after_begin(format, at, depth)}")  # fmt: skip

    def _after_begin(self, format: Any, at: Path, depth: int) -> str:
        end = format.get("end", "")
        ends = end if isinstance(end, list) else [end]
        if not ends or not all(isinstance(text, str) for text in ends):
            refuse(
                KIND, (*at, "end"), f"end must be a string or a list of strings; got {end!r:.80}"
            )
        content, here = format.get("content"), (*at, "content")
        if _is_text(content) and all(ends):
            text = self._text(content, here)
            return self._rule(" | ".join(self._until(text, end) for end in ends))
        words = self._format(content, here, depth)
        return f"{words} {self._rule(' | '.join(map(self._literal, ends)))}"

    def triggered_tags(self, format: Any, at: Path, depth: int) -> str:
        """Free text; a trigger in it begins a tag."""
        triggers = _field(format, "triggers", list, at)
        tags = _field(format, "tags", list, at)
        if not triggers or not all(isinstance(text, str) and text for text in triggers):
            refuse(KIND, (*at, "triggers"), "triggers must be a list of non-empty strings")
        if not tags:
            refuse(KIND, (*at, "tags"), "tags must hold at least one tag")
        text = self._text(format, at)
        forms: dict[str, list[str]] = {trigger: [] for trigger in triggers}
        for i, tag in enumerate(tags):
            here = (*at, "tags", i)
            begin = _field(tag, "begin", str, here)
            matching = [trigger for trigger in triggers if begin.startswith(trigger)]
            if len(matching) != 1:
                refuse(KIND, (*here, "begin"), f"{begin!r:.80} must begin with exactly one of the "
                       f"triggers; {len(matching)} match")  # fmt: skip
            rest = self._literal(begin[len(matching[0]) :])
            forms[matching[0]].append(self._rule(f"{rest} {self._after_begin(tag, here, depth)}"))
        bodies = {
            trigger: self._rule(" | ".join(rules)) for trigger, rules in forms.items() if rules
        }
        tagged = self._rule(
            " | ".join(f"{self._until(text, trigger)} {body}" for trigger, body in bodies.items())
        )
        at_once = self._rule(
            " | ".join(f"{self._literal(trigger)} {body}" for trigger, body in bodies.items())
        )
        return self._repeated(format, at, (at_once, tagged, text))

    def _repeated(self, format: Any, at: Path, rules: tuple[str, str, str]) -> str:
        at_once, tagged, text = rules
        at_least_one = _field(format, "at_least_one", bool, at, False)
        if _field(format, "stop_after_first", bool, at, False):
            return at_once if at_least_one else self._rule(f"{tagged} | {text}")
        return self._rule(f"{at_once if at_least_one else ''} {tagged}* {text}")

    def tags_with_separator(self, format: Any, at: Path, depth: int) -> str:
        """Tags with the separator between them and no other text."""
        tags = _field(format, "tags", list, at)
        if not tags:
            refuse(KIND, (*at, "tags"), "tags must hold at least one tag")
        separator = self._literal(_field(format, "separator", str, at))
        tag = self._rule(" | ".join(
            self.tag(tag, (*at, "tags", i), depth) for i, tag in enumerate(tags)
        ))  # fmt: skip
        more = "" if _field(format, "stop_after_first", bool, at, False) else (
            self._rule(f"{separator} {tag}") + "*"
        )  # fmt: skip
        words = self._rule(f"{tag} {more}")
        return words if _field(format, "at_least_one", bool, at, False) else f"{words}?"


def _is_text(format: Any) -> bool:
    return isinstance(format, dict) and format.get("type") == "any_text"


WRITERS: dict[str, Callable[[_Writer, Any, Path, int], str]] = {
    "any_text": _Writer.any_text,
    "const_string": _Writer.const_string,
    "json_schema": _Writer.embedded,
    "regex": _Writer.embedded,
    "grammar": _Writer.embedded,
    "sequence": _Writer.sequence,
    "or": _Writer.choice,
    "optional": _Writer.repeat,
    "star": _Writer.repeat,
    "plus": _Writer.repeat,
    "repeat": _Writer.repeat,
    "tag": _Writer.tag,
    "triggered_tags": _Writer.triggered_tags,
    "tags_with_separator": _Writer.tags_with_separator,
}
