"""The native bodies and answers, described for /openapi.json and the documents.

Bodies are decoded by ``jaxserve.native_request``, by hand, because clients know the messages of
SGLang's strict decoder; a test holds the two together.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

LogprobEntries = list[tuple[float | None, int, str | None]]
PositionEntries = list[LogprobEntries | None]


class SamplingBody(BaseModel, extra="forbid"):
    """``sampling_params``.  null is the default; an unknown name is a 400."""

    max_new_tokens: int | None = Field(
        default=128,
        ge=0,
        description="The default is shortened to what fits, an explicit value that does not fit "
        "is a 400; null: to the end of the context. 0: nothing is sampled.",
    )
    min_new_tokens: int | None = Field(default=0, ge=0)
    temperature: float | None = Field(default=1.0, ge=0, description="0 is greedy.")
    top_p: float | None = Field(default=1.0, gt=0, le=1)
    top_k: int | None = Field(default=-1, description="-1 is off, else at least 1.")
    min_p: float | None = Field(default=0.0, ge=0, le=1)
    frequency_penalty: float | None = Field(default=0.0, ge=-2, le=2)
    presence_penalty: float | None = Field(default=0.0, ge=-2, le=2)
    repetition_penalty: float | None = Field(default=1.0, gt=0, le=2)
    stop: str | list[str] | None = Field(default=None, description="At most 32.")
    stop_token_ids: list[int] | None = None
    stop_regex: str | list[str] | None = Field(
        default=None,
        description="At most 32 of at most 256 bytes, in Python's syntax without look-around and "
        "back-references. The match that ends first stops the output: `\\d+` at its first digit. "
        "`matched` is what was matched, not the pattern as in SGLang.",
    )
    n: int | None = Field(
        default=1,
        ge=1,
        le=1024,
        description="The same for all prompts of a batch; at most 65,536 sequences in a request.",
    )
    beam_width: int | None = Field(
        default=None,
        ge=1,
        le=10,
        description="Above 1: beam search. `n` is how many beams are returned, in "
        "`meta_info.beam_results`, the best also as the answer. Nothing is sampled.",
    )
    json_schema: str | dict[str, Any] | None = Field(
        default=None, description="At most one of these four; an empty string is none."
    )
    regex: str | None = None
    ebnf: str | None = Field(default=None, description="SGLang's EBNF, GBNF or Lark.")
    structural_tag: str | dict[str, Any] | None = None
    ignore_eos: bool | None = False
    skip_special_tokens: bool | None = True
    spaces_between_special_tokens: bool | None = Field(
        default=True, description="No tokenizer.json's decoder puts any; without effect."
    )
    no_stop_trim: bool | None = Field(
        default=False, description="The matched stop string or token stays in the text."
    )
    logit_bias: dict[str, float] | None = Field(
        default=None, description="Token id → what is added to its logit."
    )
    stream_interval: int | None = Field(
        default=None, ge=1, description="Tokens per event; default: --stream-interval."
    )
    sampling_seed: int | None = Field(
        default=None, description="Always honoured; SGLang ignores it outside one mode."
    )
    custom_params: dict[str, Any] | None = Field(
        default=None, description="For custom logit processors, which there are not: 400."
    )


class SessionBody(BaseModel):
    """``session_params``: the request of an open session that the prompt continues."""

    id: str
    rid: str | None = Field(default=None, description="null begins a conversation of its own.")
    offset: int | None = Field(
        default=0, description="Keep so many tokens of that conversation; from its end if < 0."
    )
    replace: bool | None = Field(
        default=False, description="Forget and abort the requests that continue `rid`."
    )
    drop_previous_output: bool | None = Field(
        default=False, description="Continue its prompt, not its output."
    )


class GenerateBody(BaseModel):
    """POST /generate.  null is the same as absent; unknown keys are ignored."""

    text: str | list[str] | None = Field(
        default=None, description="Exactly one of text, input_ids and input_embeds."
    )
    input_ids: list[int] | list[list[int]] | None = None
    input_embeds: list[list[float]] | list[list[list[float]]] | None = Field(
        default=None,
        description="One row of hidden_size numbers per prompt token, in place of its embedding. "
        "Penalties count the output alone. Not with session_params, require_reasoning, "
        "return_prompt_token_ids or logprobs of the prompt. Needs --disable-radix-cache.",
    )
    sampling_params: SamplingBody | list[SamplingBody] | None = None
    rid: str | list[str] | None = Field(
        default=None,
        description="On a batch rid becomes rid_0, rid_1, …; with n > 1 each sample gets _0, _1, "
        "…. One that is open already is a 400.",
    )
    return_logprob: bool | list[bool] | None = Field(
        default=False,
        description="Of output tokens after penalties and temperature, before top_k, top_p and "
        "min_p; of prompt tokens as the model gives them.",
    )
    logprob_start_len: int | list[int] | None = Field(
        default=None,
        description="First position of the prompt to give logprobs of; -1: none. Without it none, "
        "but all with max_new_tokens 0. Only the entry of position 0 is null: SGLang's first "
        "entry always is.",
    )
    top_logprobs_num: int | list[int] | None = Field(default=0, description="At most 20.")
    token_ids_logprob: list[int] | list[list[int]] | None = Field(
        default=None, description="At most 64 ids whose logprobs are given at every position."
    )
    return_hidden_states: bool | Literal["last"] | list[bool | Literal["last"]] | None = Field(
        default=False,
        description="What logits are made of, after the final norm. true: a list whose first item "
        "is the list of the prompt's, one per token, and then one per output token but the last, "
        "which is not computed on; tokens that a grammar appended at the very end have none. "
        '"last": the one that the last token was made of. The prefix cache supplies no token '
        "whose state is asked for. Needs --enable-return-hidden-states.",
    )
    return_text_in_logprobs: bool | None = Field(
        default=False, description="Fills the third element of the entries."
    )
    return_prompt_token_ids: bool | None = False
    stream: bool | None = False
    priority: int | None = Field(
        default=None,
        description="With --enable-priority-scheduling or --schedule-policy priority.",
    )
    session_params: SessionBody | list[SessionBody] | None = None
    session_id: str | None = Field(default=None, description="For routers in front; no effect.")
    extra_key: str | list[str] | None = Field(
        default=None, description="Prefixes are shared only among requests with the same."
    )
    cache_salt: str | list[str] | None = Field(default=None, description="Likewise.")
    no_logs: bool | None = Field(
        default=False, description="Nothing of this request is written by --log-requests."
    )
    require_reasoning: bool | None = Field(
        default=False,
        description="The output begins with reasoning: a grammar begins after it, and it is "
        "counted in reasoning_tokens. Needs --reasoning-parser.",
    )
    max_thinking_tokens: int | None = Field(
        default=None,
        ge=0,
        description="After so many tokens of reasoning its end mark is forced, and the answer "
        "follows. Needs require_reasoning and --enable-strict-thinking.",
    )


class VertexBody(BaseModel):
    """POST /vertex_generate."""

    instances: list[dict[str, Any]] = Field(
        description="Each with text, input_ids or input_embeds."
    )
    parameters: dict[str, Any] | None = Field(
        default=None, description="Other fields of /generate, and of sampling_params."
    )


class FinishReasonObject(BaseModel):
    """Why a sequence ended."""

    type: Annotated[str, Field(description="stop, length or abort")]
    matched: int | str | None = Field(
        default=None, description="The stop token id or string, or what a stop_regex matched."
    )
    length: int | None = None
    message: str | None = None
    status_code: int | None = None
    err_type: str | None = None


class MetaInfo(BaseModel):
    """What is known of one sequence.  Logprob entries are [logprob, token id, text or null]."""

    id: str
    finish_reason: FinishReasonObject | None
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    weight_version: str
    num_retractions: int
    e2e_latency: float | None = None
    sequence_score: float | None = Field(
        default=None, description="This and the next of a beam search: the logprob per token."
    )
    beam_results: list[dict[str, Any]] | None = Field(
        default=None, description="Answers, best first; the first has a whole meta_info."
    )
    input_token_logprobs: LogprobEntries | None = None
    output_token_logprobs: LogprobEntries | None = None
    output_token_logprobs_length: int | None = None
    input_top_logprobs: PositionEntries | None = None
    output_top_logprobs: PositionEntries | None = None
    input_token_ids_logprobs: PositionEntries | None = None
    output_token_ids_logprobs: PositionEntries | None = None
    hidden_states: list[list[list[float]] | list[float]] | list[float] | None = Field(
        default=None, description="See return_hidden_states."
    )
    queue_time: float | None = Field(
        default=None, description="This and the following come at the end, with --enable-metrics."
    )
    request_received_ts: float | None = None
    forward_entry_time: float | None = None
    prefill_finished_time: float | None = None
    first_token_latency: float | None = None
    decode_throughput: float | None = None
    request_finished_ts: float | None = None
    response_sent_to_client_ts: float | None = None


class GenerateAnswer(BaseModel):
    """One sequence; a list of them for a list of prompts or n > 1, prompts first."""

    text: str
    output_ids: list[int]
    meta_info: MetaInfo
    prompt_token_ids: list[int] | None = None
    index: int | None = Field(default=None, description="In the events of a list.")
