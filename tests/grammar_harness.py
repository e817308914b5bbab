"""A small vocabulary, and outputs drawn from a grammar token by token."""

import json
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from jaxserve.constrained import CompiledGrammar, GrammarError, Matcher, Vocabulary, fill_masks

SUITE = Path(__file__).parent / "constrained" / "suite"
EOS, OTHER_EOS, BOS, CALL = 0, 1, 2, 3
SPECIAL = ("<eos>", "<eot>", "<bos>", "<call>")
FREE_TOKENS = 40  # drawn freely before the walk makes for the end
MAX_TOKENS = 4000
# What closes something, the most closing first.
CLOSERS = tuple(b'"}])>;.0') + tuple(b"\n e")


def cases(name: str) -> list[dict[str, Any]]:
    """The records of one file of the suite."""
    return [json.loads(line) for line in (SUITE / f"{name}.jsonl").read_text().splitlines()]


def _corpus() -> Iterator[str]:
    for file in sorted(SUITE.glob("*.jsonl")):
        yield from file.read_text().splitlines()
    yield '{"name": "value", "number": 12.5, "list": [true, false, null]}\n    ' * 20


@cache
def byte_level() -> Vocabulary:
    """GPT-2's kind: tokens of bytes, spaces inside; the logits are wider than the tokens."""
    rust = Tokenizer(models.BPE())
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    rust.train_from_iterator(
        _corpus(),
        trainers.BpeTrainer(
            vocab_size=2000,
            special_tokens=list(SPECIAL),
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    byte_of = {c: b for c, b in zip(sorted(alphabet), _bytes_of_sorted_alphabet(), strict=True)}
    table = [
        token.encode() if token in SPECIAL else bytes(byte_of[c] for c in token)
        for token in map(rust.id_to_token, range(rust.get_vocab_size()))
    ]
    return _vocabulary(tuple(table), rust)


def _bytes_of_sorted_alphabet() -> list[int]:
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return printable + [b for b in range(256) if b not in printable]


@cache
def byte_fallback() -> Vocabulary:
    """Sentencepiece's kind: words with their space, and one token for each of the 256 bytes."""
    words = ["true", "false", "null", "name", "id", "value", "a", "b", "ab", "0", "12", "{", '{"']
    words += ['"', '":', '",', "}", "]", "[", ",", ":", "é", "漢", "  ", "\n"]
    pieces = [*words, *(f"▁{word}" for word in words if word.strip())]
    names = [*SPECIAL, *(f"<0x{b:02X}>" for b in range(256)), "▁", *pieces]
    rust = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, [], byte_fallback=True))
    rust.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    table = [name.encode() for name in SPECIAL] + [bytes([b]) for b in range(256)]
    table += [name.replace("▁", " ").encode() for name in names[len(table) :]]
    return _vocabulary(tuple(table), rust)


def _vocabulary(table: tuple[bytes, ...], rust: Tokenizer) -> Vocabulary:
    return Vocabulary(
        token_bytes=table,
        eos_token_ids=(EOS, OTHER_EOS),
        special_token_ids=frozenset(range(len(SPECIAL))),
        vocab_size=len(table) + 77,
        encode=lambda text: rust.encode(text, add_special_tokens=False).ids,
    )


def allowed(matcher: Matcher, vocabulary: Vocabulary) -> np.ndarray:
    """The ids that may come next, ascending."""
    masks = np.zeros((1, vocabulary.num_mask_words), np.uint32)
    fill_masks([matcher], masks)
    return np.flatnonzero(np.unpackbits(masks[0].view(np.uint8), bitorder="little"))


def text_of(token_ids: list[int], vocabulary: Vocabulary) -> bytes:
    """The output without end tokens."""
    return b"".join(
        vocabulary.token_bytes[i] for i in token_ids if i not in vocabulary.eos_token_ids
    )


def spelled(text: str, vocabulary: Vocabulary) -> list[int]:
    """Token ids that spell ``text``, one byte each where the tokenizer would say otherwise."""
    ids = vocabulary.encode(text)
    if b"".join(vocabulary.token_bytes[i] for i in ids) == text.encode():
        return ids
    of_byte = {t: i for i, t in reversed(list(enumerate(vocabulary.token_bytes))) if len(t) == 1}
    return [of_byte[bytes([b])] for b in text.encode()]


def takes(grammar: CompiledGrammar, text: str, vocabulary: Vocabulary) -> bool:
    """Whether ``text`` is a complete output."""
    matcher = grammar.new_matcher()
    return _accepts(matcher, spelled(text, vocabulary)) and matcher.may_end


def _accepts(matcher: Matcher, token_ids: Sequence[int]) -> bool:
    try:
        matcher.accept(token_ids)
    except GrammarError:
        return False
    return True


def walk(
    grammar: CompiledGrammar,
    vocabulary: Vocabulary,
    seed: int,
    *,
    endings: Sequence[str] = (),
    is_forcing: bool = True,
) -> list[int]:
    """A complete output: at first any allowed token, then those that lead to the end.

    ``endings`` are texts worth trying then, for grammars that random tokens never finish.
    """
    matcher = grammar.new_matcher()
    rng = np.random.default_rng(seed)
    output: list[int] = []
    while not matcher.is_finished:
        assert len(output) < MAX_TOKENS, text_of(output, vocabulary)[-300:]
        forced = matcher.forced_tokens() if is_forcing else ()
        is_closing = len(output) >= FREE_TOKENS
        if is_closing and matcher.may_end:
            return [*output, EOS]
        if not forced and is_closing:
            forced = _ending(grammar, output, [spelled(text, vocabulary) for text in endings])
        if forced:
            matcher.accept(forced)
            output += forced
            continue
        choice = allowed(matcher, vocabulary)
        assert choice.size, f"no token is allowed after {text_of(output, vocabulary)!r}"
        assert choice[-1] < len(vocabulary.token_bytes)
        token_id = int(_pick(choice, vocabulary, rng, is_closing=is_closing))
        matcher.accept([token_id])
        output.append(token_id)
    return output


def _ending(grammar: CompiledGrammar, output: list[int], endings: list[list[int]]) -> Sequence[int]:
    for token_ids in endings:
        matcher = grammar.new_matcher()
        matcher.accept(output)
        if _accepts(matcher, token_ids):
            return token_ids
    return ()


def _pick(
    choice: np.ndarray, vocabulary: Vocabulary, rng: np.random.Generator, *, is_closing: bool
) -> int:
    if not is_closing:
        return rng.choice(choice)
    by_text = {vocabulary.token_bytes[i]: i for i in choice}
    closers = [by_text[bytes([b])] for b in CLOSERS if bytes([b]) in by_text]
    if closers and rng.random() < 0.9:
        return closers[0] if rng.random() < 0.5 else rng.choice(closers)
    return rng.choice(choice)
