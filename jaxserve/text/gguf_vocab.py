"""A ``tokenizers.Tokenizer`` rebuilt from the vocabulary that a .gguf file carries.

A .gguf file names its pre-tokenizer (``tokenizer.ggml.pre``) instead of describing it, so each
name that can be served is spelled out here as the model's own tokenizer.json has it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from jaxserve.errors import ConfigError

_CONTROL, _USER_DEFINED = 3, 4
_EOS_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
_USE_A_FOLDER = "pass --tokenizer-path with a folder that holds the model's tokenizer.json"

# Words, digits in groups of up to {digits}, punctuation, line breaks, spaces.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True)
class _Split:
    """How text is cut before the merges apply.  ``words=None`` is GPT-2's own pattern."""

    words: str | None = None
    single_digits: bool = False
    whole_words_first: bool = False  # a word that is a token is not merged up from bytes
    nfc: bool = False
    adds_bos: bool = False  # when the file does not say

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        steps: list[pre_tokenizers.PreTokenizer] = []
        if self.single_digits:
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        if self.words is not None:
            steps.append(pre_tokenizers.Split(Regex(self.words), "isolated"))
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=self.words is None))
        return pre_tokenizers.Sequence(steps)


_GPT2 = _Split()
_LLAMA3 = _Split(words=_WORDS.format(digits="{1,3}"), whole_words_first=True, adds_bos=True)
_SPLITS = {
    "default": _GPT2,
    "gpt-2": _GPT2,
    "smollm": _Split(single_digits=True),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "qwen2": _Split(words=_WORDS.format(digits=""), nfc=True),
}


@dataclass(frozen=True, slots=True)
class GgufVocab:
    """The tokenizer and the texts of its special tokens, by transformers' names for them."""

    tokenizer: Tokenizer
    special_tokens: dict[str, str]  # bos_token, eos_token, pad_token, unk_token
    eos_token_ids: tuple[int, ...]
    chat_template: str | None


def build_vocab(fields: Mapping[str, Any], path: Path) -> GgufVocab:
    """Rebuild the tokenizer from the fields of ``path``'s header.

    Raises:
        ConfigError: no vocabulary, or one of a kind that cannot be rebuilt; says what to do.
    """
    prefix = "tokenizer.ggml."
    ggml = {key.removeprefix(prefix): fields[key] for key in fields if key.startswith(prefix)}
    split = _split(ggml, path)
    tokens: list[str] = ggml["tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in ggml["merges"]]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: token_id for token_id, token in enumerate(tokens)},
            merges=merges,
            ignore_merges=split.whole_words_first,
        )
    )
    if split.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = split.pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    _add_special_tokens(tokenizer, tokens, ggml.get("token_type", []))
    names = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
    special = {
        f"{name}_token": tokens[ggml[f"{key}_token_id"]]
        for name, key in names.items()
        if f"{key}_token_id" in ggml
    }
    if ggml.get("add_bos_token", split.adds_bos) and "bos_token" in special:
        bos = special["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos}:0 $A:0", special_tokens=[(bos, ggml["bos_token_id"])]
        )
    return GgufVocab(
        tokenizer=tokenizer,
        special_tokens=special,
        eos_token_ids=tuple(dict.fromkeys(ggml[key] for key in _EOS_KEYS if key in ggml)),
        chat_template=fields.get("tokenizer.chat_template"),
    )


def _split(ggml: Mapping[str, Any], path: Path) -> _Split:
    missing = [key for key in ("model", "tokens", "merges") if key not in ggml]
    model = ggml.get("model", "gpt2")
    if model != "gpt2":
        raise ConfigError(
            f"{path} has a tokenizer of kind {model!r}; only 'gpt2' (byte-level BPE) can be "
            f"rebuilt from a .gguf file: {_USE_A_FOLDER}"
        )
    if missing:
        raise ConfigError(f"{path} has no tokenizer.ggml.{missing[0]}: {_USE_A_FOLDER}")
    name = ggml.get("pre", "default")
    if name not in _SPLITS:
        raise ConfigError(
            f"{path} has the pre-tokenizer {name!r}; known ones are {', '.join(_SPLITS)}: "
            f"{_USE_A_FOLDER}"
        )
    return _SPLITS[name]


def _add_special_tokens(tokenizer: Tokenizer, tokens: list[str], kinds: list[int]) -> None:
    for kind, is_special in ((_CONTROL, True), (_USER_DEFINED, False)):
        found = [
            AddedToken(token, special=is_special, normalized=False)
            for token, its_kind in zip(tokens, kinds, strict=False)
            if its_kind == kind
        ]
        add = tokenizer.add_special_tokens if is_special else tokenizer.add_tokens
        add(found)
