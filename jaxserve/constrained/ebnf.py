"""GBNF and xgrammar's EBNF, written in llguidance's Lark."""

import json

from jaxserve.constrained.ebnf_parser import (
    ROOT,
    Characters,
    Choice,
    Literal,
    Name,
    Node,
    Repeat,
    Sequence,
    children,
    parse_ebnf,
)


def ebnf_to_lark(source: str) -> str:
    """The same grammar in Lark, beginning at ``start``.

    A rule without recursion becomes a terminal, that is one regular expression, and so do
    neighbours inside the recursive rules: between two terminals llguidance takes the longest
    match and does not come back.

    Raises:
        InvalidRequestError: a mistake, with its line and column.
    """
    return _Writer(parse_ebnf(source)).lark()


class _Writer:
    def __init__(self, rules: dict[str, Node]) -> None:
        self._rules = rules
        self._regular = _regular_rules(rules)
        self._names = {
            rule: f"T{i}" if rule in self._regular else f"r{i}" for i, rule in enumerate(rules)
        }
        self._lines: list[str] = []
        self._num_parts = 0

    def lark(self) -> str:
        self._lines = ["%llguidance {}", f"start: {self._names[ROOT]}"]
        for rule, node in self._rules.items():
            self._lines.append(f"{self._names[rule]}: {self._body(node)}")
        return "\n".join(self._lines) + "\n"

    def _is_regular(self, node: Node) -> bool:
        if isinstance(node, Name):
            return node.rule in self._regular
        return all(map(self._is_regular, children(node)))

    def _body(self, node: Node) -> str:
        """The right-hand side of a definition."""
        match node:
            case Choice(options):
                return " | ".join(self._body(option) for option in options)
            case Sequence(items):
                return self._joined(node, items)
            case _:
                return self._part(node)

    def _joined(self, node: Node, items: tuple[Node, ...]) -> str:
        if not items:
            return '""'
        if self._is_regular(node):
            return " ".join(map(self._part, items))
        parts: list[str] = []
        run: list[Node] = []
        for item in (*items, None):
            if item is not None and self._is_regular(item):
                run.append(item)
                continue
            if run:
                parts.append(self._part(run[0] if len(run) == 1 else Sequence(tuple(run))))
                run = []
            if item is not None:
                parts.append(self._part(item))
        return " ".join(parts)

    def _part(self, node: Node) -> str:
        """One word of a right-hand side; what is longer becomes a definition of its own."""
        match node:
            case Literal(text):
                return json.dumps(text, ensure_ascii=False)
            case Characters():
                return _character_class(node)
            case Name(rule):
                return self._names[rule]
            case Repeat(_, _, 0):
                return '""'
            case Repeat(item, least, most):
                word = self._defined(item) if isinstance(item, Repeat) else self._part(item)
                is_star = least == 0 and most is None
                return (
                    f"{word}*" if is_star else f"{word}{{{least},{'' if most is None else most}}}"
                )
            case Sequence(()):
                return '""'
        return self._defined(node)

    def _defined(self, node: Node) -> str:
        self._num_parts += 1
        name = f"{'T' if self._is_regular(node) else 'r'}_{self._num_parts}"
        self._lines.append(f"{name}: {self._body(node)}")
        return name


def _regular_rules(rules: dict[str, Node]) -> set[str]:
    """The rules that lead to no recursive one."""
    uses = {rule: _used(node) for rule, node in rules.items()}
    users: dict[str, list[str]] = {rule: [] for rule in rules}
    for rule, used in uses.items():
        for name in used:
            users[name].append(rule)
    waiting = {rule: len(used) for rule, used in uses.items()}
    ready = [rule for rule, count in waiting.items() if count == 0]
    regular: set[str] = set()
    while ready:
        rule = ready.pop()
        regular.add(rule)
        for user in users[rule]:
            waiting[user] -= 1
            if waiting[user] == 0:
                ready.append(user)
    return regular


def _used(node: Node) -> set[str]:
    if isinstance(node, Name):
        return {node.rule}
    return set().union(*map(_used, children(node)))


def _character_class(characters: Characters) -> str:
    ranges = "".join(
        f"\\x{{{ord(first):X}}}" + ("" if first == last else f"-\\x{{{ord(last):X}}}")
        for first, last in characters.ranges
    )
    return f"/[{'^' if characters.is_negated else ''}{ranges}]/"
