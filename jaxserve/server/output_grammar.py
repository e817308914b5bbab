"""What an output must match, as OpenAI's and SGLang's fields say it → ``Grammar``."""

from collections.abc import Mapping
from typing import get_args

import orjson

from jaxserve.errors import InvalidRequestError
from jaxserve.request import Grammar, GrammarKind
from jaxserve.server.json_body import JsonObject

ANY_OBJECT = '{"type":"object"}'
FORMATS = ("text", "json_object", "json_schema", "structural_tag")
KINDS: tuple[GrammarKind, ...] = get_args(GrammarKind)


def grammar_of(
    response_format: Mapping[str, object], **sources: str | JsonObject
) -> Grammar | None:
    """The one grammar that a request asks for, or None.

    Args:
        response_format: OpenAI's field; empty if absent.
        **sources: SGLang's fields ``json_schema``, ``regex``, ``ebnf`` and ``structural_tag``;
            empty ones are absent, an object is the same as its JSON text.

    Raises:
        InvalidRequestError: more than one is asked for, or a response_format that is none.
    """
    given = [
        Grammar(kind, source if isinstance(source, str) else _json(source))
        for kind in KINDS
        if (source := sources.get(kind))
    ]
    of_format = format_grammar(response_format)
    if len(given) > 1:
        raise InvalidRequestError(
            "Only one of json_schema, regex, ebnf, or structural_tag can be set."
        )
    if given and of_format is not None:
        raise InvalidRequestError(
            f"Only one of response_format and {given[0].kind} can be set; leave one of them away."
        )
    return given[0] if given else of_format


def format_grammar(response_format: Mapping[str, object]) -> Grammar | None:
    """The grammar of OpenAI's ``response_format``; None for text.

    Raises:
        InvalidRequestError: an unknown type, or no schema.
    """
    kind = response_format.get("type")
    if kind is None or kind == "text":
        return None
    if kind == "json_object":
        return Grammar("json_schema", ANY_OBJECT)
    if kind == "json_schema":
        return Grammar("json_schema", _json(_schema(response_format)))
    if kind == "structural_tag":
        return Grammar("structural_tag", _json(response_format))
    raise InvalidRequestError(
        f"response_format.type must be one of {', '.join(FORMATS)}, got {kind!r}."
    )


def _schema(response_format: Mapping[str, object]) -> object:
    named = response_format.get("json_schema")
    if named is not None and not isinstance(named, Mapping):
        raise InvalidRequestError(
            "response_format.json_schema must be an object with name and schema, got "
            f"{type(named).__name__}."
        )
    schema = None if named is None else named.get("schema")
    if schema is None:
        raise InvalidRequestError("schema_ is required for json_schema response format request.")
    if not isinstance(schema, (Mapping, bool)):
        raise InvalidRequestError(
            "response_format.json_schema.schema must be a JSON schema (an object), got "
            f"{type(schema).__name__}."
        )
    return schema


def _json(value: object) -> str:
    return orjson.dumps(value).decode()
