import json
from typing import Any

import pytest

from jaxserve.errors import InvalidRequestError, UnsupportedFeatureError
from jaxserve.request import Grammar, SamplingParams
from jaxserve.sampling_dict import SamplingFieldError, sampling_params_from_dict

# What SGLang's own frontend sends with every gen(), and its router with every request.
FRONTEND: dict[str, Any] = {
    "skip_special_tokens": True, "spaces_between_special_tokens": True, "max_new_tokens": 128,
    "min_new_tokens": 0, "n": 1, "stop": [], "stop_token_ids": [], "stop_regex": [],
    "temperature": 1.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "frequency_penalty": 0.0,
    "presence_penalty": 0.0, "ignore_eos": False, "regex": None, "json_schema": None,
}  # fmt: skip
NAMES = (
    *FRONTEND, "repetition_penalty", "beam_width", "ebnf", "structural_tag", "no_stop_trim",
    "logit_bias", "stream_interval", "sampling_seed", "custom_params",
)  # fmt: skip


def params(**given: Any) -> SamplingParams:
    return sampling_params_from_dict(given)[0]


def test_nothing_and_neutral_values_are_the_defaults() -> None:
    neutral = {
        "regex": "", "stop_regex": "", "custom_params": {}, "beam_width": 1, "top_k": 2**30,
        "spaces_between_special_tokens": False,
    }  # fmt: skip
    for given in (None, {}, FRONTEND, neutral):
        assert sampling_params_from_dict(given) == (SamplingParams(), 1)


def test_null_is_the_default_everywhere_but_for_max_new_tokens() -> None:
    given = dict.fromkeys(NAMES)
    assert sampling_params_from_dict(given) == (SamplingParams(max_new_tokens=None), 1)


def test_every_field_arrives() -> None:
    found, n = sampling_params_from_dict(
        {
            "max_new_tokens": 5, "min_new_tokens": 2, "temperature": 0, "top_p": 0.5, "top_k": 7,
            "min_p": 0.25, "frequency_penalty": 1, "presence_penalty": -1.5,
            "repetition_penalty": 1.25, "stop": ["a", "", "b"], "stop_token_ids": [3, 4], "n": 3,
            "ignore_eos": True, "skip_special_tokens": False, "no_stop_trim": True,
            "logit_bias": {"7": -100, "8": 0.5}, "sampling_seed": -9, "stop_regex": ["a+", "", "b"],
            "stream_interval": 4, "regex": "", "ebnf": "root ::= x",
        }
    )  # fmt: skip
    assert n == 3
    assert found == SamplingParams(
        max_new_tokens=5, min_new_tokens=2, temperature=0.0, top_p=0.5, top_k=7, min_p=0.25,
        frequency_penalty=1.0, presence_penalty=-1.5, repetition_penalty=1.25, stop=("a", "b"),
        stop_token_ids=(3, 4), ignore_eos=True, skip_special_tokens=False, no_stop_trim=True,
        logit_bias=((7, -100.0), (8, 0.5)), seed=-9, stop_regex=("a+", "b"), stream_interval=4,
        grammar=Grammar("ebnf", "root ::= x"),
    )  # fmt: skip
    assert type(found.temperature) is float
    assert params(stop="one").stop == ("one",)
    assert params(top_k=-1).top_k == 0


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(SamplingFieldError, match="unknown field `foo`, expected one of `max_new"):
        params(foo=1)
    with pytest.raises(SamplingFieldError) as caught:
        params(max_tokens=None)
    assert all(f"`{name}`" in str(caught.value) for name in NAMES)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"temperature": "a"}, 'invalid type: string "a", expected f64'),
        ({"temperature": 'a"b'}, r'invalid type: string "a\"b", expected f64'),
        ({"temperature": True}, "invalid type: boolean `true`, expected f64"),
        ({"top_p": [1]}, "invalid type: sequence, expected f64"),
        ({"top_p": {}}, "invalid type: map, expected f64"),
        ({"max_new_tokens": "a"}, 'invalid type: string "a", expected i32'),
        ({"max_new_tokens": 1.5}, "invalid type: floating point `1.5`, expected i32"),
        ({"max_new_tokens": 2**31}, "invalid value: integer `2147483648`, expected i32"),
        ({"n": True}, "invalid type: boolean `true`, expected i32"),
        ({"top_k": "5"}, 'invalid type: string "5", expected i64'),
        ({"ignore_eos": 1}, "invalid type: integer `1`, expected a boolean"),
        ({"stop": 5}, "invalid type: integer `5`, expected a string or a sequence of strings"),
        ({"stop": ["a", 5]}, "invalid type: integer `5`, expected a string"),
        ({"stop_token_ids": 5}, "invalid type: integer `5`, expected a sequence"),
        ({"stop_token_ids": ["5"]}, 'invalid type: string "5", expected i64'),
        ({"logit_bias": [1]}, "invalid type: sequence, expected a map"),
        ({"logit_bias": {"1": "x"}}, 'invalid type: string "x", expected f64'),
        ({"logit_bias": {"x": 1}}, "logit_bias maps token ids to numbers; 'x' is not a token id"),
        ({"temperature": 10**400}, "invalid value: integer out of range, expected f64"),
        ({"sampling_seed": "a"}, "sampling_seed must be an integer, got str."),
        ({"sampling_seed": 1.0}, "sampling_seed must be an integer, got float."),
    ],
)
def test_wrong_types(given: dict[str, Any], message: str) -> None:
    with pytest.raises(SamplingFieldError) as caught:
        sampling_params_from_dict(given)
    assert str(caught.value) == message


def test_sampling_params_itself_must_be_an_object() -> None:
    with pytest.raises(SamplingFieldError, match='invalid type: string "x", expected struct'):
        sampling_params_from_dict("x")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"temperature": NaN}', "temperature must be a non-negative finite number, got nan."),
        ('{"temperature": Infinity}', "temperature must be a non-negative finite number, got inf."),
        ('{"temperature": -1}', "temperature must be a non-negative finite number, got -1.0."),
        ('{"top_p": NaN}', "top_p must be in (0, 1], got nan."),
        ('{"top_p": 0}', "top_p must be in (0, 1], got 0.0."),
        ('{"top_k": 0}', "top_k must be -1 (disable) or at least 1, got 0."),
        ('{"top_k": -2}', "top_k must be -1 (disable) or at least 1, got -2."),
        ('{"min_p": NaN}', "min_p must be in [0, 1], got nan."),
        ('{"frequency_penalty": NaN}', "frequency_penalty must be in [-2, 2], got nan."),
        ('{"presence_penalty": 2.5}', "presence_penalty must be in [-2, 2], got 2.5."),
        (
            '{"repetition_penalty": 0}',
            "repetition_penalty must be in (0, 2] (1.0 = no penalty), got 0.0.",
        ),
        ('{"max_new_tokens": -1}', "max_new_tokens must be at least 0, got -1."),
        (
            '{"min_new_tokens": 9, "max_new_tokens": 5}',
            "min_new_tokens must be in [0, max_new_tokens(5)], got 9.",
        ),
        ('{"n": 0}', "n must be at least 1, got 0."),
        ('{"logit_bias": {"1": NaN}}', "logit_bias values must be finite numbers"),
        ('{"sampling_seed": 9223372036854775808}', "sampling_seed must be a 64-bit signed "
         "integer, got 9223372036854775808."),
    ],
)  # fmt: skip
def test_values_out_of_range(text: str, message: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        sampling_params_from_dict(json.loads(text))
    assert str(caught.value) == message


def test_at_most_32_stop_strings() -> None:
    assert len(params(stop=["x"] * 32).stop) == 32
    with pytest.raises(InvalidRequestError, match="at most 32 stop strings are allowed, got 33"):
        params(stop=["x"] * 33)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"beam_width": 2}, "above 1 is for /generate only; leave it out"),
        ({"custom_params": {"a": 1}}, "is not supported by this server; leave it out"),
    ],
)
def test_what_is_not_built_is_named(given: dict[str, Any], why: str) -> None:
    (name,) = given
    with pytest.raises(UnsupportedFeatureError, match=rf"sampling_params\.{name} {why}"):
        sampling_params_from_dict(given)


def test_two_grammars_are_a_contradiction() -> None:
    with pytest.raises(InvalidRequestError, match="Only one of json_schema, regex, ebnf, or"):
        params(regex="a", ebnf="b")


@pytest.mark.parametrize("kind", ["json_schema", "regex", "ebnf", "structural_tag"])
def test_each_kind_of_grammar(kind: str) -> None:
    assert params(**{kind: "x"}).grammar == Grammar(kind, "x")  # type: ignore[arg-type]
    with pytest.raises(SamplingFieldError, match="invalid type: integer `3`, expected a string"):
        params(**{kind: 3})


@pytest.mark.parametrize("kind", ["json_schema", "structural_tag"])
def test_what_is_json_may_be_an_object(kind: str) -> None:
    assert params(**{kind: {"a": 1}}).grammar == Grammar(kind, '{"a": 1}')  # type: ignore[arg-type]
    with pytest.raises(SamplingFieldError, match="a JSON object is needed"):
        params(**{kind: {"a": {1, 2}}})


def test_stop_regexes_are_few_and_short() -> None:
    assert len(params(stop_regex=["x"] * 32).stop_regex) == 32
    for given, message in (
        (["x"] * 33, "at most 32 stop_regex patterns are allowed, got 33"),
        ("é" * 129, "a stop_regex may have at most 256 bytes, one of 258 was given; shorten it"),
    ):
        with pytest.raises(InvalidRequestError) as caught:
            params(stop_regex=given)
        assert str(caught.value) == message
    with pytest.raises(InvalidRequestError, match="stream_interval must be at least 1, got 0"):
        params(stream_interval=0)
