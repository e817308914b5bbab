"""The law: however a sequence is cut into pushes, the joined increments are its one-shot text."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models
from tokenizers import Tokenizer as RustTokenizer
from transformers import PreTrainedTokenizerFast

from jaxserve.request import SamplingParams
from jaxserve.text import Detokenizer, Tokenizer, load_tokenizer

FAMILY = "👩‍👩‍👧‍👦"
PIECES = ["▁the", "▁cat", "s", "▁", "a", "b", "ab", "ca", "你", "\n", "▁▁", "é"]


def sentencepiece_like() -> Tokenizer:
    """A vocabulary with spaces as ▁ and one token per byte, as Llama 2's."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *PIECES]
    rust = RustTokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, [], byte_fallback=True))
    rust.add_special_tokens([AddedToken(t, special=True) for t in tokens[:3]])
    rust.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=rust, eos_token="</s>"))


SPM = sentencepiece_like()
SPM_FIRST_PIECE = 3 + 256


@pytest.fixture(scope="module")
def demo(demo_model: Path) -> Tokenizer:
    return load_tokenizer(demo_model)


def increments(
    tokenizer: Tokenizer,
    pushes: Sequence[Sequence[int]],
    sampling: SamplingParams | None = None,
    prompt: Sequence[int] = (),
) -> tuple[list[str], str | None, int]:
    """Texts, the stop that was matched, and the number of tokens up to it."""
    detokenizer = Detokenizer(tokenizer, prompt, sampling or SamplingParams())
    texts: list[str] = []
    count = 0
    for ids, is_last in [*((ids, False) for ids in pushes), ((), True)]:
        increment = detokenizer.push(ids, is_last)
        texts.append(increment.text)
        count += increment.num_tokens
        if increment.matched_stop is not None:
            return texts, increment.matched_stop, count
    return texts, None, count


def first_stop(text: str, stops: Sequence[str]) -> tuple[int, int, str] | None:
    """(end, start, stop) of the stop that is complete first, by looking at every prefix."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            longest = max(ending, key=len)
            return end, end - len(longest), longest
    return None


cuts = st.lists(st.integers(1, 4), max_size=40)


def cut(ids: Sequence[int], sizes: Sequence[int]) -> list[Sequence[int]]:
    pushes, at = [], 0
    for size in sizes:
        pushes.append(ids[at : at + size])
        at += size
    return [*pushes, ids[at:]]


@given(ids=st.lists(st.integers(0, 49151) | st.integers(17, 400), max_size=40), sizes=cuts)
@settings(deadline=None, max_examples=200)
def test_byte_level_increments_join_to_the_one_shot_text(
    demo: Tokenizer, ids: list[int], sizes: list[int]
) -> None:
    for skips in (True, False):
        sampling = SamplingParams(skip_special_tokens=skips)
        texts, _, count = increments(demo, cut(ids, sizes), sampling)
        assert "".join(texts) == demo.decode(ids, skip_special_tokens=skips)
        assert count == len(ids)


def spm_ids(text: str) -> list[int]:
    """Pieces where there are some, bytes elsewhere: always whole characters."""
    ids: list[int] = []
    for character in text:
        if character in PIECES:
            ids.append(SPM_FIRST_PIECE + PIECES.index(character))
        else:
            ids += [3 + byte for byte in character.encode()]
    return ids


pieces = st.lists(st.sampled_from([*PIECES, FAMILY, "ß", "😀", "ж"]), max_size=20)


@given(prompt=pieces, output=pieces, sizes=cuts, ends=st.booleans())
@settings(deadline=None, max_examples=200)
def test_window_increments_continue_the_prompts_text(
    prompt: list[str], output: list[str], sizes: list[int], ends: bool
) -> None:
    def ids_of(texts: list[str]) -> list[int]:
        known = {piece: SPM_FIRST_PIECE + i for i, piece in enumerate(PIECES)}
        return [i for text in texts for i in ([known[text]] if text in known else spm_ids(text))]

    prompt_ids, ids = ids_of(["a", *prompt]), ids_of(output) + [2] * ends
    texts, _, _ = increments(SPM, cut(ids, sizes), prompt=prompt_ids)
    whole = SPM.decode(prompt_ids + ids)
    assert "".join(texts) == whole.removeprefix(SPM.decode(prompt_ids))


def test_the_window_keeps_the_first_words_space() -> None:
    the, cat = SPM_FIRST_PIECE, SPM_FIRST_PIECE + 1
    assert increments(SPM, [[cat], [the]], prompt=[the])[0][:2] == [" cat", " the"]
    assert increments(SPM, [[cat]])[0][0] == "cat"
    assert increments(SPM, [[1], [cat], [2], [cat]], prompt=[the])[0][:4] == [
        "",
        " cat",
        "",
        " cat",
    ]


def test_the_window_stays_small_when_bytes_stay_broken() -> None:
    texts, _, _ = increments(SPM, [[3 + 0xC3]] * 100)
    assert "".join(texts) == "\ufffd" * 100
    assert any(texts[:-1])


@pytest.mark.parametrize("text", [FAMILY, "你好世界", "naïve 😀😀", "🏳️‍🌈"])
def test_no_increment_holds_half_a_character(demo: Tokenizer, text: str) -> None:
    for tokenizer, ids in ((demo, demo.encode(text)), (SPM, spm_ids(text))):
        texts, _, _ = increments(tokenizer, [[i] for i in ids])
        assert "".join(texts) == text
        assert "\ufffd" not in "".join(texts)


def test_a_character_left_incomplete_is_shown_as_a_one_shot_decode_shows_it(
    demo: Tokenizer,
) -> None:
    ids = demo.encode("ok 你")[:-1]
    texts, _, _ = increments(demo, [[i] for i in ids])
    assert texts[-1] == "\ufffd"
    assert "".join(texts) == demo.decode(ids)


SPECIALS = {1: "<|im_start|>", 2: "<|im_end|>"}  # of the demo model
spelled = st.lists(st.sampled_from(["a", "b", "<|im_", "end|>", "end", *SPECIALS]), max_size=12)
special_stops = st.lists(
    st.sampled_from(["<|im_end|>", "a<|im_end|>", "|>b", "<|im_", "ba", "<|im_start|><|im_end|>"]),
    min_size=1,
    max_size=3,
)


@given(parts=spelled, stops=special_stops, sizes=cuts, keeps=st.booleans(), skips=st.booleans())
@settings(deadline=None, max_examples=300)
def test_stops_see_special_tokens_that_are_not_shown(
    demo: Tokenizer, parts: list[Any], stops: list[str], sizes: list[int], keeps: bool, skips: bool
) -> None:
    ids: list[int] = []
    whole, shown = "", []  # the text, and which of its characters are shown
    for part in parts:
        if isinstance(part, int):
            ids.append(part)
            whole += SPECIALS[part]
            shown += [not skips] * len(SPECIALS[part])
        else:
            ids += demo.encode(part)
            whole += part
            shown += [True] * len(part)
    found = first_stop(whole, stops)
    end = len(whole) if found is None else found[0 if keeps else 1]
    expected = "".join(c for c, is_shown in zip(whole[:end], shown[:end], strict=True) if is_shown)
    sampling = SamplingParams(stop=tuple(stops), no_stop_trim=keeps, skip_special_tokens=skips)
    texts, matched, _ = increments(demo, cut(ids, sizes), sampling)
    assert ("".join(texts), matched) == (expected, None if found is None else found[2])


def test_a_stop_regex_sees_special_tokens(demo: Tokenizer) -> None:
    sampling = SamplingParams(stop_regex=(r"a<\|im_(end|start)",))
    pushes = [demo.encode("ba"), [2], demo.encode("c")]
    texts, matched, count = increments(demo, pushes, sampling)
    assert ("".join(texts), matched) == ("b", "a<|im_end")
    assert count == len(pushes[0]) + 1


letters = st.text("abc\n😀", max_size=30)
some_stops = st.lists(st.text("abc\n😀", min_size=1, max_size=5), min_size=1, max_size=3)


@given(text=letters, stops=some_stops, sizes=cuts, keeps=st.booleans())
@settings(deadline=None, max_examples=300)
def test_output_ends_at_the_first_stop_whatever_the_cuts(
    demo: Tokenizer, text: str, stops: list[str], sizes: list[int], keeps: bool
) -> None:
    ids = demo.encode(text)
    sampling = SamplingParams(stop=tuple(stops), no_stop_trim=keeps)
    texts, matched, count = increments(demo, cut(ids, sizes), sampling)
    found = first_stop(text, stops)
    if found is None:
        assert ("".join(texts), matched, count) == (text, None, len(ids))
        return
    end, start, stop = found
    assert ("".join(texts), matched) == (text[: end if keeps else start], stop)
    assert stop in demo.decode(ids[:count])
    assert stop not in demo.decode(ids[: count - 1])


@given(text=letters, stops=some_stops)
@settings(deadline=None, max_examples=200)
def test_held_back_is_the_longest_end_that_may_become_a_stop(
    demo: Tokenizer, text: str, stops: list[str]
) -> None:
    if first_stop(text, stops):
        return
    detokenizer = Detokenizer(demo, (), SamplingParams(stop=tuple(stops)))
    shown = "".join(detokenizer.push((i,)).text for i in demo.encode(text))
    may_come = [
        length
        for length in range(len(text) + 1)
        if length == 0 or any(stop.startswith(text[-length:]) for stop in stops)
    ]
    assert shown == text[: len(text) - max(may_come)]


def test_a_long_stop_that_almost_comes_again_and_again_stays_cheap(demo: Tokenizer) -> None:
    a, c = demo.encode("a")[0], demo.encode("c")[0]
    sampling = SamplingParams(stop=("a" * 5000 + "b",))
    ids = ([a] * 4999 + [c]) * 4
    texts, matched, _ = increments(demo, [[i] for i in ids], sampling)
    assert matched is None
    assert len("".join(texts)) == len(ids)


# --- stop_regex ---


@pytest.mark.parametrize(
    ("sampling", "text", "matched"),
    [
        ({"stop_regex": (r"\d+ km",)}, "It is ", "12 km"),
        ({"stop_regex": (r"\d+ km",), "no_stop_trim": True}, "It is 12 km", "12 km"),
        ({"stop_regex": ("k", r"is \d"), "stop": ("km",)}, "It ", "is 1"),
        ({"stop_regex": ("12 km a",), "stop": ("km",)}, "It is 12 ", "km"),
        ({"stop_regex": (r"away\b",)}, "It is 12 km ", "away"),
        ({"stop_regex": ("nothing",)}, "It is 12 km away", None),
    ],
)
def test_stop_regex_at_any_cut(
    demo: Tokenizer, sampling: dict[str, Any], text: str, matched: str | None
) -> None:
    ids = demo.encode("It is 12 km away")
    for size in (1, 2, len(ids)):
        detokenizer = Detokenizer(demo, (), SamplingParams(**sampling))
        shown, found = "", None
        for start in range(0, len(ids), size):
            piece = ids[start : start + size]
            increment = detokenizer.push(piece, is_last=start + size >= len(ids))
            shown += increment.text
            found = increment.matched_stop
            if found is not None:
                break
        assert (shown, found) == (text, matched)


def test_a_stop_regex_holds_back_what_may_match_and_no_more(demo: Tokenizer) -> None:
    detokenizer = Detokenizer(demo, (), SamplingParams(stop_regex=("km (away|off)",)))
    shown = [detokenizer.push((i,)).text for i in demo.encode("12 km as k")]
    assert "".join(shown) == "12 km as "
    assert detokenizer.push((), is_last=True).text == "k"
