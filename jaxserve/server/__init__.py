"""The HTTP API over one LLM: SGLang's native endpoints and OpenAI's, on aiohttp.

Reading order: service, http_errors, json_body, state, sse, streams, native_types, native,
openai_types, openai_format, openai, admin, app.
"""
