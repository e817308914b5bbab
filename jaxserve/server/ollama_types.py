"""The bodies of Ollama's /api/chat and /api/generate, and their translation to a chat body."""

from collections import deque
from collections.abc import Sequence
from typing import Annotated, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field

from jaxserve.errors import InvalidRequestError, UnsupportedFeatureError
from jaxserve.server.chat_types import ChatBody
from jaxserve.server.json_body import JsonObject, parse, refuse_unsupported
from jaxserve.server.openai_types import Items

DEFAULT_NUM_PREDICT = 2048  # SGLang's

_TEXT_ONLY = "the model takes text only"
CHAT_UNSUPPORTED = {"images": _TEXT_ONLY}
GENERATE_UNSUPPORTED = {
    "images": _TEXT_ONLY,
    "suffix": "the model does not fill in the middle",
    "template": "the chat template is the model's own or that of --chat-template",
    "context": "send the conversation to /api/chat",
}


class Options(BaseModel):
    """``options``.  Unknown ones are refused; those of Ollama's own runner change nothing here.

    ``num_ctx`` is no limit here: a prompt that does not fit in the context is a 400, never cut.
    """

    model_config = ConfigDict(extra="forbid")

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    num_predict: Annotated[int, Field(description="Negative: to the end of the context.")] = (
        DEFAULT_NUM_PREDICT
    )
    stop: str | Items[str] = []
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    # what our sampler has no other value of
    repeat_last_n: Annotated[Literal[-1], Field(description="Penalties see the whole text.")] = -1
    tfs_z: float = 1.0
    typical_p: float = 1.0
    mirostat: Literal[0] = 0
    penalize_newline: Literal[True] = True
    # of Ollama's runner
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None
    num_ctx: int | None = None
    num_keep: int | None = None
    num_batch: int | None = None
    num_gpu: int | None = None
    num_thread: int | None = None
    main_gpu: int | None = None
    numa: bool | None = None
    low_vram: bool | None = None
    f16_kv: bool | None = None
    logits_all: bool | None = None
    vocab_only: bool | None = None
    use_mmap: bool | None = None
    use_mlock: bool | None = None
    embedding_only: bool | None = None

    @property
    def in_chat(self) -> JsonObject:
        """The same in chat's words; None where nothing was sent.

        Raises:
            UnsupportedFeatureError: a sampler that there is not.
        """
        for name, value in (("tfs_z", self.tfs_z), ("typical_p", self.typical_p)):
            if value != 1:
                raise UnsupportedFeatureError(
                    f"`options.{name}` {value} is not supported: there is no such sampler. Leave "
                    "it away or send 1."
                )
        return {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k or None,  # 0 is off in Ollama
            "min_p": self.min_p,
            "seed": self.seed,
            "max_completion_tokens": self.num_predict if self.num_predict >= 0 else None,
            "stop": self.stop,
            "repetition_penalty": self.repeat_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
        }


class _OllamaBody(BaseModel):
    model: str = "default"
    stream: bool = True
    format: Annotated[str | JsonObject, Field(description="Json, or a JSON schema.")] = ""
    options: Options = Options()
    think: Annotated[bool | str | None, Field(description="Or how much: low, medium, high.")] = None
    logprobs: bool = False
    top_logprobs: int = 0
    keep_alive: Annotated[float | str | None, Field(description="The model stays loaded.")] = None

    @property
    def unloads(self) -> bool:
        """Whether a request without a prompt is there to free the model's memory."""
        return self.keep_alive in (0, "0", "0s")

    def _chat_body(self, fields: JsonObject) -> ChatBody:
        think = self.think
        return parse(
            ChatBody,
            {
                **fields,
                **self.options.in_chat,
                "model": self.model,
                "stream": self.stream,
                "response_format": _chat_format(self.format),
                "reasoning": {"enabled": think} if isinstance(think, bool) else None,
                "reasoning_effort": think if isinstance(think, str) else None,
                "logprobs": self.logprobs,
                "top_logprobs": self.top_logprobs,
            },
        )


class OllamaChatBody(_OllamaBody):
    """POST /api/chat."""

    messages: Items[JsonObject] = []
    tools: Items[JsonObject] = []

    @property
    def is_empty(self) -> bool:
        """Nothing to answer: the request is there to load or unload the model."""
        return not self.messages

    def chat_body(self) -> ChatBody:
        """The same request in chat's words.

        Raises:
            InvalidRequestError: a message, tool or option that chat does not take.
        """
        return self._chat_body({"messages": _chat_messages(self.messages), "tools": self.tools})


class OllamaGenerateBody(_OllamaBody):
    """POST /api/generate."""

    prompt: str = ""
    system: str = ""
    raw: Annotated[bool, Field(description="The prompt goes to the model as it is.")] = False

    @property
    def is_empty(self) -> bool:
        """Nothing to answer: the request is there to load or unload the model."""
        return not self.prompt

    def chat_body(self, raw_prompt: Sequence[int] = ()) -> ChatBody:
        """The same request in chat's words.

        Args:
            raw_prompt: the prompt's tokens if it is ``raw``.

        Raises:
            InvalidRequestError: a format or an option that chat does not take.
        """
        if self.raw:
            return self._chat_body({"input_ids": raw_prompt, "separate_reasoning": False})
        messages = [{"role": "user", "content": self.prompt}]
        if self.system:
            messages.insert(0, {"role": "system", "content": self.system})
        return self._chat_body({"messages": messages})


def parse_chat_body(raw: JsonObject) -> OllamaChatBody:
    """The body of /api/chat.

    Raises:
        InvalidRequestError: names the field.
    """
    refuse_unsupported(raw, CHAT_UNSUPPORTED)
    return parse(OllamaChatBody, _without_null_options(raw))


def parse_generate_body(raw: JsonObject) -> OllamaGenerateBody:
    """The body of /api/generate.

    Raises:
        InvalidRequestError: names the field.
    """
    refuse_unsupported(raw, GENERATE_UNSUPPORTED)
    return parse(OllamaGenerateBody, _without_null_options(raw))


def _without_null_options(raw: JsonObject) -> JsonObject:
    options = raw.get("options")
    if not isinstance(options, dict):
        return raw
    return raw | {"options": {k: v for k, v in options.items() if v is not None}}


def _chat_format(given: str | JsonObject) -> JsonObject | None:
    if not given:
        return None
    if isinstance(given, dict):
        return {"type": "json_schema", "json_schema": {"name": "format", "schema": given}}
    if given != "json":
        raise InvalidRequestError(f'format must be "json" or a JSON schema, got {given!r}.')
    return {"type": "json_object"}


def _chat_messages(messages: Sequence[JsonObject]) -> list[JsonObject]:
    """Ollama's calls have no ids: a tool message answers the oldest call that has no answer."""
    chat: list[JsonObject] = []
    unanswered: deque[str] = deque()
    num_calls = 0
    for i, message in enumerate(messages):
        refuse_unsupported(message, {"images": _TEXT_ONLY})
        names = ("role", "content")
        turned: JsonObject = {name: message[name] for name in names if message.get(name)}
        if turned.get("role") != "assistant":
            turned.setdefault("content", "")
        if message.get("thinking"):
            turned["reasoning_content"] = message["thinking"]
        if message.get("tool_name"):
            turned["name"] = message["tool_name"]
        calls = _calls(i, message.get("tool_calls"), num_calls)
        if calls:
            turned["tool_calls"] = calls
            unanswered += [str(call["id"]) for call in calls]
            num_calls += len(calls)
        if turned.get("role") == "tool" and unanswered:
            turned["tool_call_id"] = unanswered.popleft()
        chat.append(turned)
    return chat


def _calls(i: int, calls: object, num_before: int) -> list[JsonObject]:
    if not calls:
        return []
    where = f"messages[{i}].tool_calls"
    if not isinstance(calls, list):
        raise InvalidRequestError(f"{where} must be a list of calls.")
    turned: list[JsonObject] = []
    for j, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("arguments"), dict):
            raise InvalidRequestError(
                f"{where}[{j}] must be an object with a function that has a name and, as an "
                "object, arguments."
            )
        arguments = orjson.dumps(function["arguments"]).decode()
        turned.append(
            {
                "id": f"call{num_before + j:05d}",  # nine characters, which some templates demand
                "type": "function",
                "function": {"name": function.get("name"), "arguments": arguments},
            }
        )
    return turned
