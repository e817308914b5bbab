"""The body of /v1/chat/completions, which every other chat API is translated to."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from jaxserve.errors import InvalidRequestError, UnsupportedFeatureError
from jaxserve.server.json_body import JsonObject
from jaxserve.server.openai_types import COMMON_UNSUPPORTED, NOT_CARRIED, CommonBody, Items
from jaxserve.server.thoughts import NEEDS_STRICT_THINKING

_USE_TOKEN_IDS = "send `return_token_ids`, which adds them to every choice"
_USE_TOOLS = "it is OpenAI's older form of tools; send `tools` and `tool_choice`"
CHAT_UNSUPPORTED = {
    name: why for name, why in COMMON_UNSUPPORTED.items() if name != "custom_params"
} | {
    "functions": _USE_TOOLS,
    "function_call": _USE_TOOLS,
    "audio": "the model takes and writes text only",
    "web_search_options": "nothing is searched",
    "return_sampling_mask": NOT_CARRIED,
    "sampling_logprobs_mode": NOT_CARRIED,
    "return_flat_raw_output_top_logprobs": NOT_CARRIED,
    "return_input_ids_in_sglext": _USE_TOKEN_IDS,
    "return_output_ids_in_sglext": _USE_TOKEN_IDS,
}
NO_EFFORT = "none"
THINKING_BUDGET = "thinking_budget"


class ReasoningOptions(BaseModel):
    """How much to reason, if at all; stands in for reasoning_effort and chat_template_kwargs."""

    model_config = ConfigDict(frozen=True)  # as a default it is not copied

    effort: str | None = None
    enabled: bool | None = None
    max_tokens: int | None = None


class ChatBody(CommonBody):
    """POST /v1/chat/completions."""

    messages: Items[JsonObject] = Field(
        default_factory=list,
        description="Roles in any case. Contents are texts or lists of text parts, joined by a "
        "space. `tool_calls` and `reasoning_content` of earlier answers go to the template. For a "
        "template without the role, a developer is the system and a function a tool.",
    )
    input_ids: Items[int] = Field(
        default_factory=list, description="A rendered prompt, not messages."
    )
    max_tokens: int | None = None
    max_completion_tokens: Annotated[
        int | None, Field(description="Without it or max_tokens: to the end of the context.")
    ] = None
    logprobs: bool = False
    top_logprobs: Annotated[
        int, Field(description="Of the likeliest tokens, at most 20; needs `logprobs`.")
    ] = 0
    tools: Items[JsonObject] = Field(
        default_factory=list,
        description="Functions. A `strict` one is held to its schema where its arguments are JSON.",
    )
    tool_choice: Annotated[
        str | JsonObject,
        Field(
            description="auto needs --tool-call-parser; required and a named tool do not. Only a "
            "named tool is shown to the model, or those of `allowed_tools`."
        ),
    ] = "auto"
    parallel_tool_calls: Annotated[
        bool, Field(description="false: an answer has at most one call.")
    ] = True
    reasoning_effort: Annotated[
        str | None, Field(description='Goes to the chat template; "none" turns thinking off.')
    ] = None
    reasoning: Annotated[
        ReasoningOptions,
        Field(
            description="`enabled` turns thinking on or off by either name that templates have. "
            "After `max_tokens` of reasoning its end is forced: --enable-strict-thinking."
        ),
    ] = ReasoningOptions()
    custom_params: JsonObject = Field(
        default_factory=dict,
        description="`thinking_budget` only, which is the same as `reasoning.max_tokens`.",
    )
    separate_reasoning: Annotated[
        bool, Field(description="false: the reasoning stays in content, markers and all.")
    ] = True
    stream_reasoning: Annotated[
        bool, Field(description="false: the reasoning comes in one chunk, at its end.")
    ] = True
    chat_template_kwargs: JsonObject = Field(
        default_factory=dict, description="Arguments of the template, such as `enable_thinking`."
    )
    continue_final_message: Annotated[
        bool, Field(description="The last message, if an assistant's, is continued, not answered.")
    ] = False
    modalities: Items[str] = Field(default_factory=list, description="`text` only.")
    return_prompt_token_ids: Annotated[
        bool, Field(description="Adds `prompt_token_ids` to every choice; not with stream.")
    ] = False
    return_meta_info: Annotated[
        bool, Field(description="Adds /generate's `meta_info` to every choice; not with stream.")
    ] = False

    @property
    def max_new_tokens(self) -> int | None:
        """The limit asked for; None is "to the end of the context"."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def num_logprobs(self) -> int | None:
        """As in ``SamplingParams``."""
        return self.top_logprobs if self.logprobs else None

    @property
    def effort(self) -> str | None:
        """How much to reason, in lower case."""
        effort = self.reasoning.effort or self.reasoning_effort
        return None if effort is None else effort.lower()

    @property
    def wants_reasoning(self) -> bool | None:
        """Whether to reason; None leaves it to the template's arguments and the model."""
        if self.reasoning.enabled is not None:
            return self.reasoning.enabled
        return False if self.effort == NO_EFFORT else None

    @property
    def thinking_budget(self) -> Any:
        """Tokens of reasoning after which its end is forced; None is no limit."""
        own = self.reasoning.max_tokens
        return self.custom_params.get(THINKING_BUDGET) if own is None else own

    def check(self, context_len: int, *, clamps: bool = False, is_strict: bool = False) -> None:
        """Refuse a limit that no prompt could have, and what a stream cannot carry.

        Args:
            context_len: prompt and output of the model, in tokens.
            clamps: the limit is going to be shortened to what fits.
            is_strict: a thinking budget can be kept to.

        Raises:
            InvalidRequestError: names the field.
        """
        limit = self.max_new_tokens
        if limit is not None and limit > context_len and not clamps:
            raise InvalidRequestError(
                f"max_completion_tokens is too large: {limit}."
                f"This model supports at most {context_len} completion tokens."
            )
        self._check_budget(is_strict)
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequestError(
                f"top_logprobs={self.top_logprobs} needs logprobs=true; send both or neither."
            )
        if any(kind != "text" for kind in self.modalities):
            raise InvalidRequestError(
                f'modalities must be ["text"], got {self.modalities}: the model writes text only.'
            )
        if self.stream:
            self._check_stream()

    def _check_budget(self, is_strict: bool) -> None:
        for name in self.custom_params.keys() - {THINKING_BUDGET}:
            raise UnsupportedFeatureError(
                f"custom_params.{name} is not supported: there are no custom logit processors. "
                f"custom_params may have {THINKING_BUDGET} only."
            )
        budget = self.thinking_budget
        if budget is None:
            return
        is_custom = self.reasoning.max_tokens is None
        name = f"custom_params.{THINKING_BUDGET}" if is_custom else "reasoning.max_tokens"
        if type(budget) is not int or budget < 0:
            raise InvalidRequestError(
                f"{name} must be an integer of at least 0, got {budget!r}; leave it away for no "
                "limit."
            )
        if not is_strict:
            raise InvalidRequestError(NEEDS_STRICT_THINKING.format(name=name))

    def _check_stream(self) -> None:
        for name, is_asked_for in (
            ("return_prompt_token_ids", self.return_prompt_token_ids),
            ("return_meta_info", self.return_meta_info),
        ):
            if is_asked_for:
                raise InvalidRequestError(
                    f"{name} is not supported with streaming on /v1/chat/completions. Please set "
                    f"stream=false when using {name}=true."
                )
