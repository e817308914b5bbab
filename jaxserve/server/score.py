"""POST /v1/score: how likely each of a few tokens is to come after a query and an item."""

import math
import uuid
from collections.abc import Sequence
from typing import Annotated

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from jaxserve.errors import InvalidRequestError
from jaxserve.native_request import MAX_SEQUENCES
from jaxserve.request import MAX_LOGPROB_TOKEN_IDS, SamplingParams
from jaxserve.server.http_errors import AbortedError, json_response
from jaxserve.server.json_body import JsonObject, parse, read_v1_object, refuse_unsupported
from jaxserve.server.openai_types import Items
from jaxserve.server.state import STATE, OpenStreams
from jaxserve.server.streams import results

_POOLING = "the model generates; it has no pooled hidden states"
SCORE_UNSUPPORTED = {
    "return_pooled_hidden_states": _POOLING,
    "return_token_logprobs": "the scores are all that is returned",
    "score_extraction_token": "scores are those of label_token_ids",
    "lora_path": "there are no LoRA adapters",
}
Text = str | Items[int]


class ScoreBody(BaseModel):
    """POST /v1/score."""

    model_config = ConfigDict(extra="ignore")

    query: Text
    items: Annotated[
        str | Items[str] | Items[Items[int]],
        Field(description="Texts if the query is a text, lists of token ids if it is one."),
    ]
    label_token_ids: Items[int]
    apply_softmax: Annotated[
        bool, Field(description="Scores of an item sum to 1; else they are probabilities.")
    ] = False
    temperature: Annotated[float, Field(description="Above 0; divides the logits.")] = 1.0
    item_first: Annotated[bool, Field(description="The item stands before the query.")] = False
    model: str = "default"
    rid: str | None = None
    priority: Annotated[
        int, Field(description="With --enable-priority-scheduling or --schedule-policy priority.")
    ] = 0

    def prompts(self) -> list[str | tuple[int, ...]]:
        """One per item.

        Raises:
            InvalidRequestError: a text beside token ids, or no labels.
        """
        if not self.label_token_ids:
            raise InvalidRequestError("label_token_ids cannot be empty.")
        if not self.temperature > 0.0:
            raise InvalidRequestError(
                f"temperature must be above 0 where tokens are scored, got {self.temperature}."
            )
        items: Sequence[str | list[int]] = self.items
        if isinstance(self.items, str):
            items = [self.items]
        return [self._prompt(i, item) for i, item in enumerate(items)]

    def _prompt(self, i: int, item: str | list[int]) -> str | tuple[int, ...]:
        if isinstance(self.query, str) and isinstance(item, str):
            return item + self.query if self.item_first else self.query + item
        if isinstance(self.query, str) or isinstance(item, str):
            raise InvalidRequestError(
                "query and items must be of one kind, texts or lists of token ids: query is "
                f"{_kind(self.query)}, items[{i}] is {_kind(item)}."
            )
        return tuple(item + self.query if self.item_first else self.query + item)

    def check_labels(self, vocab_size: int) -> None:
        """Refuse a label that is no token; in SGLang's words.

        Raises:
            InvalidRequestError: names the first such id.
        """
        for token_id in self.label_token_ids:
            if not 0 <= token_id < vocab_size:
                raise InvalidRequestError(
                    f"Token ID {token_id} is out of vocabulary (vocab size: {vocab_size}); "
                    "label_token_ids are ids of tokens."
                )

    def label_groups(self) -> list[tuple[int, ...]]:
        """The labels, as many at once as one sequence can be asked for."""
        ids, size = self.label_token_ids, MAX_LOGPROB_TOKEN_IDS
        return [tuple(ids[i : i + size]) for i in range(0, len(ids), size)]


async def score(request: web.Request) -> web.Response:
    """POST /v1/score."""
    state = request.app[STATE]
    raw = await read_v1_object(request)
    refuse_unsupported(raw, SCORE_UNSUPPORTED)
    body = parse(ScoreBody, raw)
    prompts, groups = body.prompts(), body.label_groups()
    body.check_labels(state.llm.info.vocab_size)
    if len(prompts) * len(groups) > MAX_SEQUENCES:
        raise InvalidRequestError(
            f"{len(prompts)} items with {len(body.label_token_ids)} labels are "
            f"{len(prompts) * len(groups)} sequences, a request may have {MAX_SEQUENCES}; send "
            "them in several requests."
        )
    rid = body.rid or uuid.uuid4().hex
    with OpenStreams() as opened:
        for i, prompt in enumerate(prompts):
            for j, labels in enumerate(groups):
                await opened.add(
                    state.llm.submit(
                        prompt, _params(body, labels), rid=f"{rid}_{i}_{j}", priority=body.priority
                    )
                )
        logprobs: list[list[float]] = [[] for _ in prompts]
        num_tokens = 0
        async for k, chunk in results(opened.streams):
            if not chunk.logprobs:
                raise AbortedError("The request was aborted before it was scored.", 503)
            logprobs[k // len(groups)] += (value for _, value in chunk.logprobs[0].of_ids)
            if k % len(groups) == 0:
                num_tokens += chunk.usage.prompt_tokens
    return json_response(_answer(body, logprobs, num_tokens))


def _params(body: ScoreBody, labels: tuple[int, ...]) -> SamplingParams:
    """One token is drawn and dropped: what counts is what it was drawn from."""
    return SamplingParams(
        max_new_tokens=1,
        temperature=body.temperature,
        num_logprobs=0,
        logprob_token_ids=labels,
        ignore_eos=True,
    )


def _answer(body: ScoreBody, logprobs: Sequence[Sequence[float]], num_tokens: int) -> JsonObject:
    return {
        "object": "scoring",
        "model": body.model,
        "scores": [_scores(item, body.apply_softmax) for item in logprobs],
        "token_logprobs": None,
        "pooled_hidden_states": None,
        "usage": {
            "prompt_tokens": num_tokens,
            "total_tokens": num_tokens,
            "completion_tokens": 0,
            "prompt_tokens_details": None,
            "reasoning_tokens": 0,
            "completion_tokens_details": None,
        },
    }


def _scores(logprobs: Sequence[float], apply_softmax: bool) -> list[float]:
    if not apply_softmax:
        return [math.exp(value) for value in logprobs]
    highest = max(logprobs)
    if highest == -math.inf:
        return [1.0 / len(logprobs)] * len(logprobs)
    weights = [math.exp(value - highest) for value in logprobs]
    total = sum(weights)
    return [weight / total for weight in weights]


def _kind(value: object) -> str:
    return "a text" if isinstance(value, str) else "a list of token ids"
