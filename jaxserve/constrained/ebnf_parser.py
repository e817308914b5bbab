"""GBNF and xgrammar's EBNF as a tree.

``root ::= "a" (ws | item{1,3})* # comment``: literals, character classes, ``.``, groups, ``|``,
``* + ? {n} {n,} {n,m}``; a rule ends where the next ``name ::=`` begins.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

from jaxserve.constrained.problems import refuse_text

KIND = "ebnf"
MAX_DEPTH = 100
MAX_REPEATS = 2**31 - 1
ROOT = "root"

_TOKEN = re.compile(
    r"""(?P<space>\s+|\#[^\n]*)
    |(?P<define>[A-Za-z_][A-Za-z0-9_.-]*\s*::=)
    |(?P<name>[A-Za-z_][A-Za-z0-9_.-]*)
    |(?P<literal>"(?:[^"\\\n]|\\.)*")
    |(?P<chars>\[(?:[^\]\\\n]|\\.)*\])
    |(?P<repeat>[*+?]|\{\s*\d+\s*(?:,\s*\d*\s*)?\})
    |(?P<mark>[|().])""",
    re.VERBOSE,
)
_ESCAPE = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|(.))", re.DOTALL)
_PLAIN_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v", "0": "\0",
                  **{c: c for c in "\"'\\[]-^/"}}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Literal:
    """Exactly this text."""

    text: str


@dataclass(frozen=True, slots=True)
class Characters:
    """One character inside (or, negated, outside) the ranges, both ends included."""

    ranges: tuple[tuple[str, str], ...]
    is_negated: bool = False


@dataclass(frozen=True, slots=True)
class Name:
    rule: str
    position: int


@dataclass(frozen=True, slots=True)
class Repeat:
    item: "Node"
    least: int
    most: int | None


@dataclass(frozen=True, slots=True)
class Sequence:
    items: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Choice:
    options: tuple["Node", ...]


Node = Literal | Characters | Name | Repeat | Sequence | Choice


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    position: int


def parse_ebnf(source: str) -> dict[str, Node]:
    """The rules by name, in their order.

    Raises:
        InvalidRequestError: a mistake, with its line and column.
    """
    rules = _Parser(source).rules()
    if ROOT not in rules:
        refuse_text(KIND, source, 0, f"there is no rule {ROOT!r}; the grammar begins with it")
    for node in rules.values():
        for name in _names(node):
            if name.rule not in rules:
                refuse_text(KIND, source, name.position, f"rule {name.rule!r} is not defined")
    return rules


def children(node: Node) -> tuple[Node, ...]:
    """The nodes right below ``node``."""
    match node:
        case Repeat(item):
            return (item,)
        case Sequence(items) | Choice(items):
            return items
        case _:
            return ()


def _names(node: Node) -> Iterator[Name]:
    if isinstance(node, Name):
        yield node
    for child in children(node):
        yield from _names(child)


class _Parser:
    def __init__(self, source: str) -> None:
        self._source = source
        self._tokens = [token for token in self._cut() if token.kind != "space"]
        self._next = 0
        self._depth = 0

    def _cut(self) -> Iterator[_Token]:
        position = 0
        while position < len(self._source):
            match = _TOKEN.match(self._source, position)
            if match is None or match.lastgroup is None:
                self._refuse(
                    position, f"{self._source[position : position + 10]!r} is not understood"
                )
            yield _Token(match.lastgroup, match[0], position)
            position = match.end()
        yield _Token("end", "", position)

    def _refuse(self, position: int, problem: str) -> NoReturn:
        refuse_text(KIND, self._source, position, problem)

    @property
    def _token(self) -> _Token:
        return self._tokens[self._next]

    def _take(self) -> _Token:
        token = self._token
        self._next += 1
        return token

    def rules(self) -> dict[str, Node]:
        rules: dict[str, Node] = {}
        while self._token.kind != "end":
            token = self._take()
            if token.kind != "define":
                self._refuse(token.position, f"expected 'name ::=', got {token.text!r}")
            name = token.text[:-3].rstrip()
            if name in rules:
                self._refuse(token.position, f"rule {name!r} is defined twice")
            rules[name] = self._choice()
        return rules

    def _choice(self) -> Node:
        options = [self._sequence()]
        while self._token.text == "|" and self._token.kind == "mark":
            self._take()
            options.append(self._sequence())
        return options[0] if len(options) == 1 else Choice(tuple(options))

    def _sequence(self) -> Node:
        items: list[Node] = []
        while self._token.kind not in ("end", "define") and self._token.text not in ("|", ")"):
            item = self._item(self._take())
            while self._token.kind == "repeat":
                item = self._repeat(item, self._take())
            items.append(item)
        return items[0] if len(items) == 1 else Sequence(tuple(items))

    def _item(self, token: _Token) -> Node:
        if token.kind == "literal":
            return Literal("".join(text for text, _ in self._characters(token, 1)))
        if token.kind == "chars":
            return self._class(token)
        if token.kind == "name":
            return Name(token.text, token.position)
        if token.text == ".":
            return Characters(((chr(0), chr(0x10FFFF)),))
        if token.text != "(":
            self._refuse(token.position, f"nothing to repeat before {token.text!r}")
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self._refuse(token.position, f"groups may be nested {MAX_DEPTH} deep; use rules")
        inner = self._choice()
        self._depth -= 1
        if self._take().text != ")":
            self._refuse(token.position, "this '(' is never closed")
        return inner

    def _repeat(self, item: Node, token: _Token) -> Node:
        if token.text in "*+?":
            least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}[token.text]
            return Repeat(item, least, most)
        first, comma, last = token.text[1:-1].partition(",")
        least = int(first[:20])
        most = (int(last[:20]) if last.strip() else None) if comma else least
        if max(least, most or 0) > MAX_REPEATS or (most is not None and most < least):
            self._refuse(
                token.position, f"{token.text} must be {{n,m}} with n <= m <= {MAX_REPEATS}"
            )
        return Repeat(item, least, most)

    def _class(self, token: _Token) -> Characters:
        is_negated = token.text.startswith("[^")
        found = list(self._characters(token, 2 if is_negated else 1))
        if not found:
            self._refuse(token.position, "a character class needs at least one character")
        ranges: list[tuple[str, str]] = []
        i = 0
        while i < len(found):
            first = last = found[i][0]
            if i + 2 < len(found) and found[i + 1] == ("-", False):
                last = found[i + 2][0]
                i += 2
            if last < first:
                self._refuse(token.position, f"range {first}-{last} is the wrong way round")
            ranges.append((first, last))
            i += 1
        return Characters(tuple(ranges), is_negated)

    def _characters(self, token: _Token, start: int) -> Iterator[tuple[str, bool]]:
        """The characters up to the closing delimiter, and whether each was escaped."""
        position = start
        while position < len(token.text) - 1:
            if token.text[position] == "\\":
                match = _ESCAPE.match(token.text, position)
                assert match is not None  # the token's own pattern pairs backslashes
                yield self._escaped(match, token.position + position), True
                position = match.end()
            else:
                yield token.text[position], False
                position += 1

    def _escaped(self, match: re.Match[str], position: int) -> str:
        code = match[1] or match[2] or match[3]
        if code is None and match[4] in _PLAIN_ESCAPES:
            return _PLAIN_ESCAPES[match[4]]
        number = int(code, 16) if code else -1
        if not 0 <= number < 0x110000 or 0xD800 <= number < 0xE000:
            self._refuse(
                position,
                f'escape {match[0]!r} is not known; allowed are \\n \\r \\t \\\\ \\" \\xHH \\uHHHH '
                "\\UHHHHHHHH and escaped marks",
            )
        return chr(number)
