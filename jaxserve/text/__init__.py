"""Text to tokens and back: vocabulary, chat template, incremental detokenization."""

from jaxserve.text.chat_template import render_chat
from jaxserve.text.detokenizer import Detokenizer, Increment
from jaxserve.text.tokenizer import Tokenizer, load_tokenizer

__all__ = ["Detokenizer", "Increment", "Tokenizer", "load_tokenizer", "render_chat"]
