"""Text to tokens and back: vocabulary, chat template, incremental detokenization."""

import jaxserve.text.advice  # noqa: F401  (must come before transformers is imported)
from jaxserve.text.chat_template import render_chat
from jaxserve.text.detokenizer import Detokenizer, Increment
from jaxserve.text.tokenizer import Tokenizer, load_tokenizer

__all__ = ["Detokenizer", "Increment", "Tokenizer", "load_tokenizer", "render_chat"]
