"""The token table that grammars are matched against."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

from llguidance import LLExecutor, LLTokenizer, TokenizerWrapper

BITS_PER_WORD = 32
ALL_ALLOWED = 2**BITS_PER_WORD - 1  # a word of a mask
MAX_MASK_THREADS = 8
# Tokens that a mask takes in all at once where a grammar allows every one of them: these halve the
# time of a mask inside words, llguidance's own that of one inside a string of JSON.
WORD_SLICES = (" [a-z]{1,12}", "[a-z]{1,8}")


@dataclass(frozen=True)
class Vocabulary:
    """What a grammar must know of a tokenizer and of the model's logits.

    ``token_bytes[i]`` are the bytes that token i adds to the text; ``b""`` for an id that has none
    (padding, unused).  ``special_token_ids`` are never text: a grammar allows one only where it
    names it.  ``vocab_size`` is the width of the logits and may exceed ``len(token_bytes)``; ids
    beyond the table are never allowed.  ``encode`` cuts text without adding special tokens.
    """

    token_bytes: tuple[bytes, ...]
    eos_token_ids: tuple[int, ...]
    special_token_ids: frozenset[int]
    vocab_size: int
    encode: Callable[[str], list[int]]

    def __post_init__(self) -> None:
        if not self.eos_token_ids:
            raise ValueError("a grammar needs an end-of-sequence token to end with; none was given")
        if self.vocab_size < len(self.token_bytes):
            raise ValueError(
                f"the logits have {self.vocab_size} entries, the tokenizer {len(self.token_bytes)} "
                "tokens: cut the table to the logits"
            )

    @property
    def num_mask_words(self) -> int:
        """Width of a mask row: ceil(vocab_size / 32) words of 32 bits, least significant first."""
        return -(-self.vocab_size // BITS_PER_WORD)

    @cached_property
    def tokenizer(self) -> LLTokenizer:
        """llguidance's form of this table.  Takes about 0.1 s for 50,000 tokens."""
        return LLTokenizer(
            cast(TokenizerWrapper, _TokenTable(self)),
            eos_token=list(self.eos_token_ids),
            slices=[*WORD_SLICES, *LLTokenizer.general_slices()],
        )

    @cached_property
    def text_tokenizer(self) -> LLTokenizer:
        """The same, with quicker masks for grammars without JSON's strings."""
        return self.tokenizer.with_slices(list(WORD_SLICES))

    @cached_property
    def executor(self) -> LLExecutor | None:
        """Threads that compute masks of several rows; None where there is no processor for them."""
        num_threads = min(MAX_MASK_THREADS, (os.cpu_count() or 1) // 2)
        return LLExecutor(num_threads) if num_threads > 1 else None

    @property
    def special_tokens(self) -> dict[str, int]:
        """Special tokens by their text."""
        special = self.special_token_ids.union(self.eos_token_ids)
        texts = {i: self.token_bytes[i].decode(errors="replace") for i in special}
        return {text: i for i, text in sorted(texts.items(), reverse=True) if text}

    def text(self, token_ids: Sequence[int]) -> bytes:
        """What tokens spell; nothing for an id that is beyond the table."""
        table = self.token_bytes
        return b"".join(table[i] for i in token_ids if i < len(table))

    def running_over(self, mark: bytes) -> Mapping[int, tuple[int, ...]]:
        """The tokens that end ``mark`` and go on with more than white space.

        Returns:
            By how many bytes of the mark there are already, 1 to ``len(mark) - 1``.
        """
        found = self._running_over.get(mark)
        if found is None:
            found = self._running_over[mark] = self._find_running_over(mark)
        return found

    @cached_property
    def _running_over(self) -> dict[bytes, Mapping[int, tuple[int, ...]]]:
        return {}

    def _find_running_over(self, mark: bytes) -> Mapping[int, tuple[int, ...]]:
        tails = {mark[start:]: start for start in range(1, len(mark))}
        candidates = tuple(tails)
        found: dict[int, list[int]] = {}
        for token_id, text in enumerate(self.token_bytes):
            if not text.startswith(candidates):
                continue
            for tail, start in tails.items():
                if text.startswith(tail) and text[len(tail) :].strip():
                    found.setdefault(start, []).append(token_id)
        return {start: tuple(token_ids) for start, token_ids in found.items()}

    def without_encoder(self) -> "Vocabulary":
        """The same for another process; text is cut into the longest tokens."""
        return replace(self, encode=_no_tokens)


def _no_tokens(text: str) -> list[int]:
    return []


class _TokenTable:
    """The attributes that LLTokenizer reads from a Python object.

    Forced text is cut into tokens by calling it.  The answer must spell exactly that text, in
    plain tokens: a tokenizer that recognises ``<|im_end|>`` written out, or puts a space before
    every text, is replaced by the longest match.
    """

    is_tokenizer_wrapper = True
    bos_token_id: int | None = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        padding = vocabulary.vocab_size - len(vocabulary.token_bytes)
        special = vocabulary.special_token_ids | set(vocabulary.eos_token_ids)
        self.tokens: Sequence[bytes] = [*vocabulary.token_bytes, *[b""] * padding]
        self.special_token_ids = sorted(special)
        self.eos_token_id = vocabulary.eos_token_ids[0]
        self._special = special
        self._encode = vocabulary.encode
        self._of_bytes = {
            text: token_id
            for token_id, text in reversed(list(enumerate(vocabulary.token_bytes)))
            if text and token_id not in special
        }
        self._longest = max(map(len, self._of_bytes), default=0)

    def __call__(self, text: str | bytes) -> list[int]:
        """Token ids that spell ``text``."""
        as_bytes = text if isinstance(text, bytes) else text.encode()
        token_ids = self._encode(as_bytes.decode(errors="replace"))
        if self._special.isdisjoint(token_ids) and self._spell(token_ids) == as_bytes:
            return token_ids
        return self._longest_matches(as_bytes)

    def _spell(self, token_ids: Sequence[int]) -> bytes:
        return b"".join(self.tokens[token_id] for token_id in token_ids)

    def _longest_matches(self, text: bytes) -> list[int]:
        token_ids: list[int] = []
        start = 0
        while start < len(text):
            for end in range(min(len(text), start + self._longest), start, -1):
                token_id = self._of_bytes.get(text[start:end])
                if token_id is not None:
                    token_ids.append(token_id)
                    start = end
                    break
            else:  # no token has this byte: nothing more can be forced
                break
        return token_ids
