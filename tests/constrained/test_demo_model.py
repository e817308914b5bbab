"""The suite's grammars written by the demo model, eight at a time, beside free requests."""

import asyncio
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from grammar_checks import check_output
from grammar_harness import cases

from jaxserve import LLM
from jaxserve.constrained import GrammarCompiler, Vocabulary
from jaxserve.request import Grammar, GrammarKind
from jaxserve.text import load_tokenizer

pytestmark = pytest.mark.slow

MAX_TOKENS = 64
FIELDS = {"schemas": "schema", "regexes": "regex", "grammars": "grammar", "tags": "tag"}
NAMES: dict[str, GrammarKind] = {
    "schemas": "json_schema",
    "regexes": "regex",
    "grammars": "ebnf",
    "tags": "structural_tag",
}
SHARE = 12  # one grammar of so many; all of them take a minute


@pytest.fixture(scope="module")
def llm(demo_model: Path, compilation_cache_dir: str) -> Iterator[LLM]:
    with LLM(
        str(demo_model),
        context_length=512,
        max_running_requests=8,
        compilation_cache_dir=compilation_cache_dir,
    ) as llm:
        yield llm


def chosen(share: int) -> list[tuple[str, dict[str, Any]]]:
    """Without the empty regex: in a request an empty grammar is none."""
    return [(file, case) for file in FIELDS for case in cases(file) if source(file, case)][::share]


def source(file: str, case: dict[str, Any]) -> str:
    value = case[FIELDS[file]]
    return value if isinstance(value, str) else json.dumps(value)


def test_the_demo_model_keeps_to_the_grammars(
    llm: LLM, demo_model: Path, share: int = SHARE
) -> None:
    records = chosen(share)
    params: list[dict[str, Any]] = [
        {
            NAMES[file]: source(file, case),
            "max_new_tokens": MAX_TOKENS,
            "temperature": i % 2 * 0.8,
            "sampling_seed": i,
        }
        for i, (file, case) in enumerate(records)
    ]
    free = {"max_new_tokens": 16, "temperature": 0.0}
    prompts = [f"Give an example of {case['name']}: " for _, case in records]
    alone = llm.generate("The sky is", free)
    *answers, beside = llm.generate([*prompts, "The sky is"], [*params, free])
    assert beside["text"] == alone["text"]
    num_complete = 0
    for (file, case), answer in zip(records, answers, strict=True):
        if answer["meta_info"]["finish_reason"]["type"] == "stop":
            num_complete += 1
            check_output(file, case, answer["text"])
    assert num_complete > len(records) / 2
    asyncio.run(check_beginnings(demo_model, records, answers))


async def check_beginnings(
    demo_model: Path, records: list[tuple[str, dict[str, Any]]], answers: list[dict[str, Any]]
) -> None:
    """What ran out of tokens is the beginning of an output."""
    tokenizer = load_tokenizer(demo_model)
    vocabulary = Vocabulary(
        token_bytes=tokenizer.vocabulary_bytes(),
        eos_token_ids=tokenizer.eos_token_ids,
        special_token_ids=tokenizer.special_token_ids,
        vocab_size=tokenizer.vocab_size,
        encode=partial(tokenizer.encode, add_special_tokens=False),
    )
    compiler = GrammarCompiler(vocabulary, num_threads=1)
    try:
        for (file, case), answer in zip(records, answers, strict=True):
            grammar = Grammar(NAMES[file], source(file, case))
            matcher = (await compiler.compile(grammar)).new_matcher()
            matcher.accept(answer["output_ids"])
    finally:
        compiler.close()
