"""Token ids to text, one increment at a time.

Whatever way a sequence is cut into pushes, the joined increments are the text of the whole
sequence, up to the first stop string or match of a stop_regex.  No increment holds half a
character, nor the beginning of a stop that the next tokens may complete.

A stop is looked for in the text with its special tokens, shown or not, as in SGLang: a client may
stop at ``<|im_end|>`` whatever skip_special_tokens says.
"""

import codecs
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from jaxserve.request import SamplingParams
from jaxserve.text.stop_regex import Match, RegexSearch, StopRegex, compile_stop_regexes
from jaxserve.text.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"
_PROMPT_WINDOW = 6  # at the prompt's end one token is enough, if it is no part of a character
_MAX_HELD_TOKENS = 16  # more than any character has bytes: what is still broken stays broken


class Increment(NamedTuple):
    """New text; ``num_tokens`` of the pushed tokens count, fewer only when a stop matched."""

    text: str
    num_tokens: int
    matched_stop: str | None = None


class Detokenizer:
    """The text of one sequence as it grows.

    Args:
        tokenizer: its vocabulary.
        prompt_ids: the tokens before the first output token.
        sampling: stop, stop_regex, no_stop_trim and skip_special_tokens are used.

    Raises:
        InvalidRequestError: a stop_regex that is wrong or costs too much.
    """

    def __init__(
        self, tokenizer: Tokenizer, prompt_ids: Sequence[int], sampling: SamplingParams
    ) -> None:
        skipped = tokenizer.special_token_ids if sampling.skip_special_tokens else frozenset()
        self._skipped = skipped
        self._decode = tokenizer.decode
        self._text: _TextSource = (
            _ByteText(tokenizer, skipped)
            if tokenizer.is_byte_level
            else _WindowText(tokenizer, skipped, prompt_ids)
        )
        self._stops: _StopFinder | None = None
        if sampling.stop or sampling.stop_regex:
            regexes = compile_stop_regexes(sampling.stop_regex)
            self._stops = _StopFinder(sampling.stop, regexes, sampling.no_stop_trim)

    def push(self, token_ids: Sequence[int], is_last: bool = False) -> Increment:
        """Take the next tokens.  ``is_last`` gives out all that was held back."""
        if self._stops is None:
            return Increment(self._text.push(token_ids, is_last), len(token_ids))
        increment = ""
        for count, token_id in enumerate(token_ids, start=1):
            if token_id in self._skipped:
                text, matched = self._stops.push(self._decode((token_id,), False), is_hidden=True)
            else:
                text, matched = self._stops.push(self._text.push((token_id,), False))
            increment += text
            if matched is not None:
                return Increment(increment, count, matched)
        if not is_last:
            return Increment(increment, len(token_ids))
        text, matched = self._stops.push(self._text.push((), True))
        if matched is None:
            rest, matched = self._stops.end()
            text += rest
        return Increment(increment + text, len(token_ids), matched)


class _TextSource(Protocol):
    def push(self, token_ids: Sequence[int], is_last: bool) -> str: ...


class _ByteText:
    """Byte-level vocabularies: a token is bytes wherever it stands, so no window is needed."""

    def __init__(self, tokenizer: Tokenizer, skipped: frozenset[int]) -> None:
        self._token_bytes = tokenizer.token_bytes
        self._token_text = tokenizer.token_text
        self._skipped = skipped
        self._is_amid_character = False
        # Keeps an incomplete character until the next call, and replaces broken ones as the
        # Rust decoder does (https://www.unicode.org/versions/latest/core-spec/chapter-3/#G66453).
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_ids: Sequence[int], is_last: bool) -> str:
        if len(token_ids) == 1 and not self._is_amid_character:  # nearly every push
            token_id = token_ids[0]
            text = "" if token_id in self._skipped else self._token_text(token_id)
            if text is not None:
                return text
        data = b"".join(
            [self._token_bytes(token) for token in token_ids if token not in self._skipped]
        )
        text = self._decoder.decode(data, is_last)
        self._is_amid_character = bool(self._decoder.getstate()[0])
        return text


class _WindowText:
    """Any vocabulary: decode the tokens of the last increment again, together with the new ones.

    What the first of them (the context) decodes to alone is cut off the front; so spaces and
    byte-fallback runs come out as they do inside the whole text.  A run of broken bytes may differ
    from a one-shot decode, which withdraws good characters in front of it.
    """

    def __init__(
        self, tokenizer: Tokenizer, skipped: frozenset[int], prompt_ids: Sequence[int]
    ) -> None:
        self._decode = tokenizer.decode
        self._skipped = skipped
        self._context = self._end_of(prompt_ids)
        self._context_text = self._decode(self._context, False)
        self._new: list[int] = []

    def push(self, token_ids: Sequence[int], is_last: bool) -> str:
        # One at a time: in a run of byte tokens that ends amid a character, the Rust decoder
        # gives up the whole characters too.
        shown = "".join([self._push_one(token) for token in self._kept(token_ids)])
        return shown + self._rest() if is_last else shown

    def _push_one(self, token_id: int) -> str:
        self._new.append(token_id)
        text = self._decode(self._context + self._new, False)
        if text.endswith(_REPLACEMENT) and len(self._new) < _MAX_HELD_TOKENS:
            return ""
        return self._advance(text)

    def _rest(self) -> str:
        return self._advance(self._decode(self._context + self._new, False)) if self._new else ""

    def _advance(self, text: str) -> str:
        increment = text[len(self._context_text) :]
        self._context, self._new = self._new, []
        self._context_text = self._decode(self._context, False)
        return increment

    def _end_of(self, prompt_ids: Sequence[int]) -> list[int]:
        """The last tokens of the prompt that are whole characters.

        Half a character would break the byte-fallback run that the output continues.
        """
        kept = self._kept(prompt_ids[-_PROMPT_WINDOW:])
        for start in range(len(kept) - 1, -1, -1):
            if _REPLACEMENT not in self._decode(kept[start:], False):
                return kept[start:]
        return []

    def _kept(self, token_ids: Sequence[int]) -> list[int]:
        return [token for token in token_ids if token not in self._skipped]


class _StopFinder:
    """Finds the stop that ends first, as if the text came character by character.

    Of several that end at the same character, the longest counts.
    """

    def __init__(
        self, stops: Sequence[str], regexes: Sequence[StopRegex], keeps_stop: bool
    ) -> None:
        self._stops = stops
        self._searches = [RegexSearch(regex) for regex in regexes]
        self._keeps_stop = keeps_stop
        self._held = ""  # the longest end of the text that may begin a stop
        self._num_given = 0  # characters before it
        self._hidden: list[Match] = []  # where it is not shown, in characters of the whole text

    def push(self, text: str, is_hidden: bool = False) -> tuple[str, str | None]:
        """Return what may be given out, and the stop string or the match that was found.

        Args:
            is_hidden: ``text`` is looked at and never given out.
        """
        if not text:
            return "", None
        if is_hidden:
            start = self._num_given + len(self._held)
            self._hidden.append(Match(start, start + len(text)))
        self._held += text
        found = [
            Match(start, start + len(stop))
            for stop in self._stops
            if (start := self._held.find(stop)) >= 0
        ]
        found += self._relative(search.push(text) for search in self._searches)
        if found:
            return self._found(found)
        held_from = min(
            [
                *(_held_from(self._held, stop) for stop in self._stops),
                *(search.begins - self._num_given for search in self._searches),
            ]
        )
        given = self._shown(held_from)
        self._held = self._held[held_from:]
        self._num_given += held_from
        return given, None

    def end(self) -> tuple[str, str | None]:
        """As ``push``, when no more text can come: nothing is held back any more."""
        found = self._relative(search.end() for search in self._searches)
        if found:
            return self._found(found)
        held, self._held = self._shown(len(self._held)), ""
        return held, None

    def _shown(self, end: int) -> str:
        """The first ``end`` characters that are held, without what is hidden."""
        if not self._hidden:
            return self._held[:end]
        parts, at = [], 0
        for hidden in self._relative(self._hidden):
            parts.append(self._held[at : min(end, max(at, hidden.start))])
            at = min(end, max(at, hidden.end))
        parts.append(self._held[at:end])
        self._hidden = [hidden for hidden in self._hidden if hidden.end > self._num_given + end]
        return "".join(parts)

    def _relative(self, matches: Iterable[Match | None]) -> list[Match]:
        before = self._num_given
        return [Match(m.start - before, m.end - before) for m in matches if m is not None]

    def _found(self, matches: list[Match]) -> tuple[str, str]:
        first = min(matches, key=lambda match: (match.end, match.start))
        shown = self._shown(first.end if self._keeps_stop else first.start)
        return shown, self._held[first.start : first.end]


def _held_from(text: str, stop: str) -> int:
    """Where the longest end of ``text`` that begins ``stop`` starts; len(text) if none does."""
    start = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while start >= 0:
        if stop.startswith(text[start:]):
            return start
        start = text.find(stop[0], start + 1)
    return len(text)
