import dataclasses
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from make_tiny_checkpoint import byte_tokenizer
from tokenizers import Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as RustTokenizer
from transformers import PreTrainedTokenizerFast

from jaxserve.errors import ConfigError, ContextLengthError, InvalidRequestError, WeightLoadError
from jaxserve.gguf_header import read_gguf_header
from jaxserve.text import Tokenizer, load_tokenizer
from jaxserve.text.gguf_vocab import build_vocab

TEXTS = (
    "The capital of France is Paris.",
    "def f(x):\n\treturn {'a': x ** 2}  # 100%\n\n\n    pass\r\n",
    "price 12345.678, year 2024, ²³½ Ⅷ 一二三 ٣٤",
    "naïve café — 你好,世界! Привет мир. こんにちは 👩‍👩‍👧‍👦 😀🏳️‍🌈",
    "   leading, trailing   and\t\ttabs \u00a0 nbsp   ",
    "it's we're I'll DON'T o'clock ''quoted''",
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
    "",
)
BYTE_FIELDS: dict[str, Any] = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.tokens": [*map(chr, range(33, 127)), "Ġ", "ab", "<|end|>", "<tool>", "Ċ"],
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.token_type": [1] * 96 + [3, 4, 1],
    "tokenizer.ggml.bos_token_id": 96,
    "tokenizer.ggml.eos_token_id": 96,
    "tokenizer.ggml.eot_token_id": 97,
}
FILE = Path("model.gguf")


@pytest.fixture(scope="module")
def demo(demo_model: Path) -> Tokenizer:
    return load_tokenizer(demo_model)


@pytest.mark.parametrize("text", TEXTS)
def test_demo_round_trip(demo: Tokenizer, text: str) -> None:
    assert demo.decode(demo.encode(text), skip_special_tokens=False) == text


def test_demo_splits_digits_and_knows_special_tokens(demo: Tokenizer) -> None:
    assert [demo.decode([i]) for i in demo.encode("12345")] == ["1", "2", "3", "4", "5"]
    assert demo.encode("<|im_start|>x<|im_end|>")[0::2] == [1, 2]
    assert demo.decode([1, 28, 2]) == demo.decode([28])
    assert demo.eos_token_ids == (2,)
    assert demo.bos_token_id == 1
    assert demo.vocab_size == 49152
    assert {1, 2} <= demo.special_token_ids
    assert demo.chat_template is not None
    assert demo.encode("hello") == demo.encode("hello", add_special_tokens=False)


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_transformers(demo_model: Path, demo: Tokenizer, text: str) -> None:
    vocab = build_vocab(read_gguf_header(demo_model).metadata, demo_model)
    theirs = PreTrainedTokenizerFast(tokenizer_object=vocab.tokenizer, **vocab.special_tokens)
    assert demo.encode(text) == theirs(text)["input_ids"]
    ids = demo.encode(text)
    assert demo.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("text", TEXTS)
def test_token_bytes_join_to_the_text(demo: Tokenizer, text: str) -> None:
    assert demo.is_byte_level
    assert b"".join(map(demo.token_bytes, demo.encode(text))) == text.encode()
    assert demo.token_bytes(10**6) == b""


def fields(**changes: Any) -> dict[str, Any]:
    return BYTE_FIELDS | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}


def pieces(pre: str, text: str) -> list[str]:
    tokenizer = build_vocab(fields(pre=pre), FILE).tokenizer
    return [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]


def test_each_pre_tokenizer_cuts_numbers_its_own_way() -> None:
    assert pieces("gpt-2", "a 12345") == ["a", "Ġ12345"]
    assert pieces("default", "a 12345") == ["a", "Ġ12345"]
    assert pieces("smollm", "a 12345") == ["a", "Ġ", "1", "2", "3", "4", "5"]
    assert pieces("llama-bpe", "a 12345") == ["a", "Ġ", "123", "45"]
    assert pieces("qwen2", "a 12345") == ["a", "Ġ", "1", "2", "3", "4", "5"]


@pytest.mark.parametrize(("pre", "digits"), [("llama-bpe", "{1,3}"), ("qwen2", "")])
@pytest.mark.parametrize("text", TEXTS[:-1])
def test_word_patterns_are_those_of_the_models_own_tokenizers(
    pre: str, digits: str, text: str
) -> None:
    published = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + digits + r"| ?[^\s\p{L}"
        r"\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    theirs = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(published), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    assert pieces(pre, text) == [piece for piece, _ in theirs.pre_tokenize_str(text)]


def test_bos_is_added_when_the_file_or_the_model_family_says_so() -> None:
    for given, starts in (
        (fields(), False),
        (fields(add_bos_token=True), True),
        (fields(pre="llama-bpe"), True),
        (fields(pre="llama-bpe", add_bos_token=False), False),
    ):
        tokenizer = build_vocab(given, FILE).tokenizer
        assert (tokenizer.encode("ab").ids[0] == 96) == starts
        assert tokenizer.encode("ab", add_special_tokens=False).ids == [95]


def test_control_tokens_are_special_and_user_defined_ones_are_text() -> None:
    vocab = build_vocab(fields(), FILE)
    assert vocab.tokenizer.encode("a<tool>b<|end|>").ids == [64, 97, 65, 96]
    assert vocab.tokenizer.decode([64, 97, 96]) == "a<tool>"
    assert vocab.eos_token_ids == (96, 97)
    assert vocab.special_tokens == {"bos_token": "<|end|>", "eos_token": "<|end|>"}


def test_vocabularies_that_cannot_be_rebuilt_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"pre-tokenizer 'klingon'; known ones are .*smollm"):
        build_vocab(fields(pre="klingon"), FILE)
    with pytest.raises(ConfigError, match=r"tokenizer of kind 'llama'; only 'gpt2' \(byte-level"):
        build_vocab(fields(model="llama"), FILE)
    with pytest.raises(ConfigError, match=r"has no tokenizer\.ggml\.model: pass --tokenizer-path"):
        build_vocab({}, FILE)


# --- folders ---


def save_bytes_tokenizer(folder: Path) -> Path:
    folder.mkdir()
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


def test_folder(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(save_bytes_tokenizer(tmp_path / "model"))
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=False) == text
    assert tokenizer.chat_template is None
    assert len(tokenizer.eos_token_ids) == 1


def test_folder_keeps_the_pre_tokenizer_that_its_class_name_would_lose(tmp_path: Path) -> None:
    folder = save_bytes_tokenizer(tmp_path / "model")
    rust = byte_tokenizer()
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), byte_level])
    rust.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    tokenizer = load_tokenizer(folder)
    cut = tokenizer._rust.pre_tokenizer.pre_tokenize_str("a12")
    assert [piece for piece, _ in cut] == ["a", "1", "2"]


def test_truncation_in_tokenizer_json_does_not_cut_prompts(tmp_path: Path) -> None:
    folder = save_bytes_tokenizer(tmp_path / "model")
    rust = byte_tokenizer()
    rust.enable_truncation(4)
    rust.save(str(folder / "tokenizer.json"))
    assert len(load_tokenizer(folder).encode("a" * 100)) == 100


def test_chat_template_file_replaces_the_models_own(tmp_path: Path, demo_model: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("{{ messages[0].content }}!")
    assert load_tokenizer(demo_model, str(file)).chat_template == "{{ messages[0].content }}!"
    with pytest.raises(ConfigError, match="--chat-template takes a Jinja file; cannot read"):
        load_tokenizer(demo_model, str(tmp_path / "missing.jinja"))


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no tokenizer\.json; write one with transformers'"):
        load_tokenizer(tmp_path)
    with pytest.raises(ConfigError, match="--tokenizer-path takes a folder with a tokenizer.json"):
        load_tokenizer(tmp_path / "nothing")
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "BP')
    with pytest.raises(ConfigError, match=r"tokenizer\.json is damaged .*; fetch it again"):
        load_tokenizer(tmp_path)
    (tmp_path / "broken.gguf").write_bytes(b"GGUF\3\0\0\0")
    with pytest.raises(WeightLoadError):
        load_tokenizer(tmp_path / "broken.gguf")


def test_half_a_surrogate_pair_is_the_clients_mistake(demo: Tokenizer) -> None:
    with pytest.raises(InvalidRequestError, match="the text holds a lone surrogate"):
        demo.encode("a\ud800b")


def test_encoding_a_long_text_lets_other_threads_run(demo: Tokenizer) -> None:
    ticks, is_done = 0, threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not is_done.wait(0.0005):
            ticks += 1

    ticker = threading.Thread(target=tick)
    ticker.start()
    demo.encode(" ".join(TEXTS) * 1000)
    is_done.set()
    ticker.join()
    assert ticks > 5  # one at most if the interpreter's lock is held


def test_a_vocabulary_is_immutable(demo_model: Path) -> None:
    vocab = build_vocab(read_gguf_header(demo_model).metadata, demo_model)
    with pytest.raises(dataclasses.FrozenInstanceError):
        vocab.chat_template = None  # type: ignore[misc]


def test_a_text_that_cannot_fit_is_refused_unread(demo: Tokenizer) -> None:
    """A bound that the true count can never be below, and at once."""
    for text in ("a" * 4000, " " * 4000, "é" * 500, "word " * 700, "\U0001f600" * 300):
        num_tokens = len(demo.encode(text))
        assert demo.encode(text, max_tokens=num_tokens)
    start_s = time.perf_counter()
    message = r"The input \(at least \d+ tokens\) is longer than the model's context length \(8192"
    with pytest.raises(ContextLengthError, match=message):
        demo.encode("x y " * 5_000_000, max_tokens=8192)
    assert time.perf_counter() - start_s < 0.5


def test_token_text_is_that_of_whole_characters_only(demo: Tokenizer) -> None:
    ids = demo.encode("plain text and an emoji \U0001f600")
    texts = [demo.token_text(token_id) for token_id in ids]
    assert None in texts  # the emoji is cut into bytes
    whole = [(i, text) for i, text in zip(ids, texts, strict=True) if text is not None]
    assert "".join(text for _, text in whole).startswith("plain text and an emoji")
    for token_id, text in whole:
        assert text.encode() == demo.token_bytes(token_id)
        assert demo.token_text(token_id) == text


# --- single tokens ---


def test_the_bytes_of_all_tokens_spell_the_text(demo: Tokenizer) -> None:
    table = demo.vocabulary_bytes()
    assert len(table) == demo.vocab_size
    text = "Héllo, 你好\n  {x: 1}"
    assert b"".join(table[i] for i in demo.encode(text)) == text.encode()


def test_sentencepiece_s_spaces_and_bytes() -> None:
    vocab = {"<unk>": 0, "<0x0A>": 1, "▁the": 2, "▁": 3, "é": 4}
    rust = RustTokenizer(models.BPE(vocab, [], byte_fallback=True))
    rust.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    tokenizer = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=rust))
    assert tokenizer.vocabulary_bytes() == (b"<unk>", b"\n", b" the", b" ", "é".encode())
    assert tokenizer.token_bytes(2) == b" the"


def test_word_pieces_have_no_bytes_of_their_own() -> None:
    rust = RustTokenizer(models.WordPiece({"[UNK]": 0, "##s": 1}, unk_token="[UNK]"))
    rust.decoder = decoders.WordPiece()
    assert Tokenizer(PreTrainedTokenizerFast(tokenizer_object=rust)).vocabulary_bytes() == ()
    assert Tokenizer(PreTrainedTokenizerFast(tokenizer_object=rust)).token_bytes(1) == b"##s"
    rust.decoder = None
    assert Tokenizer(PreTrainedTokenizerFast(tokenizer_object=rust)).vocabulary_bytes() == ()


def test_a_token_by_its_text(demo: Tokenizer) -> None:
    assert demo.token_id("<|im_end|>") == 2
    assert demo.token_id("no such token") is None
