"""Structured output: grammars compiled with llguidance, followed token by token.

``GrammarCompiler`` turns a ``Grammar`` into a ``CompiledGrammar`` on threads of its own; each
sequence follows it with a ``Matcher``; ``fill_masks`` writes the tokens that each row of a step
may take as packed bits.
"""

from jaxserve.constrained.compiler import CompiledGrammar, GrammarCompiler, GrammarStats
from jaxserve.constrained.matcher import Matcher, fill_masks
from jaxserve.constrained.vocabulary import ALL_ALLOWED, BITS_PER_WORD, Vocabulary
from jaxserve.errors import GrammarError

__all__ = [
    "ALL_ALLOWED",
    "BITS_PER_WORD",
    "CompiledGrammar",
    "GrammarCompiler",
    "GrammarError",
    "GrammarStats",
    "Matcher",
    "Vocabulary",
    "fill_masks",
]
