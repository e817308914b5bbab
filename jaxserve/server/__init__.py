"""The HTTP API over one LLM: SGLang's native endpoints and OpenAI's, on aiohttp.

Read in this order: service, http_errors, json_body, sse, streams, state, the request bodies
(native_types, openai_types), the handlers (native, openai_format, openai, admin), app.
"""
