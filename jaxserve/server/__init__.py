"""The HTTP API over one LLM: SGLang's native endpoints, OpenAI's, Anthropic's and Ollama's.

Start with ``route`` (one row per endpoint) and ``app`` (what every request passes through); then
``native`` for /generate, and ``chat_turn`` for everything that is a chat: ``openai_chat``,
``responses``, ``messages`` and ``ollama`` differ in how they spell it.  tests/test_layers.py has
the whole order.
"""
