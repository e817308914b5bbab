"""Text to token ids and back, from a Hugging Face folder or a .gguf file."""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import orjson
from tokenizers import decoders
from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

from jaxserve.errors import ConfigError, ContextLengthError, InvalidRequestError
from jaxserve.gguf_header import read_gguf_header
from jaxserve.text.gguf_vocab import build_vocab

_SPACE = "\u2581"  # what SentencePiece writes for one
_BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")
_FIRST_UNPRINTABLE = 256  # where GPT-2's alphabet puts the bytes that have no printable character


def _byte_alphabet() -> dict[str, int]:
    """Character of a byte-level token → the byte it stands for.

    GPT-2's map (https://github.com/openai/gpt-2/blob/master/src/encoder.py): printable Latin-1
    stands for itself, the other 68 bytes follow from U+0100 on.
    """
    alphabet = {chr(b): b for b in (*range(33, 127), *range(161, 173), *range(174, 256))}
    others = [b for b in range(256) if chr(b) not in alphabet]
    return alphabet | {chr(_FIRST_UNPRINTABLE + i): b for i, b in enumerate(others)}


_BYTE_OF = _byte_alphabet()


class Tokenizer:
    """A vocabulary with its special tokens and chat template.  Safe to share between threads.

    Encoding and decoding go straight to the Rust tokenizer: transformers' own ``__call__`` gives
    the same ids, sets truncation on the shared object and takes several times as long.
    """

    def __init__(
        self, transformers_tokenizer: PreTrainedTokenizerFast, eos_token_ids: Sequence[int] = ()
    ) -> None:
        self._transformers = transformers_tokenizer
        self._rust = transformers_tokenizer.backend_tokenizer
        self._rust.no_truncation()
        self._rust.no_padding()
        self._special_ids = frozenset(
            token_id
            for token_id, token in self._rust.get_added_tokens_decoder().items()
            if token.special
        )
        own = transformers_tokenizer.eos_token_id
        self._eos_token_ids = tuple(
            dict.fromkeys([*eos_token_ids, *([] if own is None else [own])])
        )
        self._is_byte_level = isinstance(self._rust.decoder, decoders.ByteLevel)
        self._token_bytes: dict[int, bytes] = {}
        self._token_text: dict[int, str | None] = {}
        # Only a byte-level vocabulary drops nothing of a text before it cuts it into tokens.
        self._longest_token = max(map(len, self._rust.get_vocab())) if self._is_byte_level else None

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included; a model's own may be larger (padding)."""
        return self._rust.get_vocab_size(with_added_tokens=True)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a sequence: the tokenizer's and those its files add."""
        return self._eos_token_ids

    @property
    def bos_token_id(self) -> int | None:
        """The token that starts a text, if there is one."""
        return self._transformers.bos_token_id

    @property
    def special_token_ids(self) -> frozenset[int]:
        """What ``skip_special_tokens`` leaves out."""
        return self._special_ids

    @property
    def chat_template(self) -> str | None:
        """The Jinja source used without tools; None when there is no template."""
        template = self._transformers.chat_template
        return template.get("default") if isinstance(template, dict) else template

    @property
    def is_byte_level(self) -> bool:
        """True when the text of a sequence is just the joined ``token_bytes`` as UTF-8."""
        return self._is_byte_level

    def token_id(self, text: str) -> int | None:
        """The id of the token whose text is exactly ``text``; None if there is none."""
        return self._rust.token_to_id(text)

    def vocabulary_bytes(self) -> tuple[bytes, ...]:
        """What each id adds to the text, as UTF-8; nothing for an id without a token.

        Empty as a whole for a vocabulary whose tokens mean different things at different places,
        such as WordPiece's.
        """
        if not (self._is_byte_level or self._is_spaced):
            return ()
        return tuple(map(self.token_bytes, range(self.vocab_size)))

    @cached_property
    def _is_spaced(self) -> bool:
        """Whether tokens are written as SentencePiece writes them."""
        return _SPACE in str(orjson.loads(self._rust.to_str())["decoder"])

    def _spaced_bytes(self, token_id: int) -> bytes:
        """SentencePiece's way: U+2581 is a space, <0x0A> a byte."""
        token = self._rust.id_to_token(token_id) or ""
        byte = _BYTE_TOKEN.fullmatch(token)
        if byte is not None:
            return bytes.fromhex(byte[1])
        return token.replace(_SPACE, " ").encode()

    def encode(
        self, text: str, add_special_tokens: bool = True, *, max_tokens: int | None = None
    ) -> list[int]:
        """Token ids of ``text``; special tokens written out in it are recognised.

        Args:
            max_tokens: refuse a text that is certainly longer without reading it: megabytes
                take seconds, and hundreds of megabytes of memory, to cut into tokens.

        Raises:
            InvalidRequestError: ``text`` holds half of a surrogate pair, so it is not Unicode.
            ContextLengthError: ``text`` cannot fit into ``max_tokens``.
        """
        if max_tokens is not None and self._longest_token is not None:
            num_tokens = -(-len(text) // self._longest_token)
            if num_tokens > max_tokens:
                raise ContextLengthError(
                    f"The input (at least {num_tokens} tokens) is longer than the model's "
                    f"context length ({max_tokens} tokens)."
                )
        try:
            # A batch of one: unlike ``encode`` it lets other threads run meanwhile.
            (encoding,) = self._rust.encode_batch_fast(
                [text], add_special_tokens=add_special_tokens
            )
            return encoding.ids
        except TypeError as error:
            raise InvalidRequestError(
                "the text holds a lone surrogate (such as \\ud800), which is not valid Unicode; "
                "send whole characters"
            ) from error

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of ``token_ids``; bytes that are not UTF-8 become U+FFFD."""
        return self._rust.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def token_bytes(self, token_id: int) -> bytes:
        """What one token adds to a text, part of a character perhaps; an unknown id has none."""
        known = self._token_bytes.get(token_id)
        if known is None:
            known = self._token_bytes[token_id] = self._bytes_of(token_id)
        return known

    def _bytes_of(self, token_id: int) -> bytes:
        if not self._is_byte_level:
            if self._is_spaced:
                return self._spaced_bytes(token_id)
            return self.decode((token_id,), skip_special_tokens=False).encode()
        token = self._rust.id_to_token(token_id) or ""
        if all(character in _BYTE_OF for character in token):
            return bytes(_BYTE_OF[character] for character in token)
        return token.encode()  # an added token written in plain characters

    def token_text(self, token_id: int) -> str | None:
        """The text of a token of a byte-level vocabulary; None unless it is whole characters."""
        try:
            return self._token_text[token_id]
        except KeyError:
            pass
        try:
            found = self.token_bytes(token_id).decode()
        except UnicodeDecodeError:
            found = None
        self._token_text[token_id] = found
        return found

    def apply_template(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> str:
        """transformers' ``apply_chat_template``, as text.  Raises whatever the template raises."""
        text = self._transformers.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, **variables
        )
        assert isinstance(text, str)
        return text


def load_tokenizer(path: Path, chat_template_file: str | None = None) -> Tokenizer:
    """Load the tokenizer beside a checkpoint.

    Args:
        path: a Hugging Face folder with a tokenizer.json, or a .gguf file.
        chat_template_file: a Jinja file that replaces the checkpoint's own chat template.

    Raises:
        ConfigError: nothing there that can be read; says what to do.
    """
    template = None if chat_template_file is None else _read_template(Path(chat_template_file))
    eos_token_ids: tuple[int, ...] = ()
    if path.is_dir():
        transformers_tokenizer = _load_folder(path)
    elif path.suffix == ".gguf":
        transformers_tokenizer, eos_token_ids = _load_gguf(path)
    else:
        raise ConfigError(
            f"no tokenizer at {path}: --tokenizer-path takes a folder with a tokenizer.json, "
            "or a .gguf file"
        )
    if template is not None:
        transformers_tokenizer.chat_template = template
    return Tokenizer(transformers_tokenizer, eos_token_ids)


def _load_folder(folder: Path) -> PreTrainedTokenizerFast:
    """Take tokenizer.json as it is.

    AutoTokenizer would pick a class by name, and transformers 5 rebuilds some of those (GPT-2's,
    which SmolLM2 names) from vocabulary and merges alone, losing the checkpoint's pre-tokenizer;
    importing it also imports torch where that is installed.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise ConfigError(
            f"{folder} has no tokenizer.json; write one with transformers' "
            "AutoTokenizer.from_pretrained(…).save_pretrained(…), or name another folder with "
            "--tokenizer-path"
        )
    try:
        orjson.loads(file.read_bytes())
    except orjson.JSONDecodeError as error:
        raise ConfigError(f"{file} is damaged ({error}); fetch it again") from error
    return PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)


def _load_gguf(path: Path) -> tuple[PreTrainedTokenizerFast, tuple[int, ...]]:
    vocab = build_vocab(read_gguf_header(path).metadata, path)
    transformers_tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=vocab.tokenizer,
        chat_template=vocab.chat_template,
        clean_up_tokenization_spaces=False,
        **vocab.special_tokens,
    )
    return transformers_tokenizer, vocab.eos_token_ids


def _read_template(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"--chat-template takes a Jinja file; cannot read {file}: {error}"
        ) from error
