"""The native types of the documents are those that the decoder reads and the answers have."""

from collections.abc import Iterator
from typing import Any

from aiohttp.test_utils import TestClient
from pydantic import BaseModel
from server.native_calls import generate, stream

from jaxserve.native_refusals import REFUSALS, UNSUPPORTED
from jaxserve.native_request import parse_generate, session_params
from jaxserve.sampling_dict import FIELDS
from jaxserve.server.native_types import (
    GenerateAnswer,
    GenerateBody,
    MetaInfo,
    SamplingBody,
    SessionBody,
)


class Recorder(dict[str, Any]):
    """Remembers which keys were asked for."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.read: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        return super().get(key, default)


def test_bodies_have_the_fields_that_are_read() -> None:
    assert SamplingBody.model_fields.keys() == FIELDS.keys()
    body = Recorder({"text": "a"})
    parse_generate(body)
    assert GenerateBody.model_fields.keys() == body.read - UNSUPPORTED.keys() - REFUSALS.keys()
    session = Recorder({"id": "s"})
    session_params("session_params", session)
    assert SessionBody.model_fields.keys() == session.read


def unknown(model: type[BaseModel], answer: dict[str, Any]) -> Iterator[str]:
    yield from answer.keys() - model.model_fields.keys()


async def test_answers_have_the_keys_that_are_described(client: TestClient) -> None:
    body = {
        "text": ["a", "b"], "return_logprob": True, "top_logprobs_num": 1, "token_ids_logprob": [1],
        "logprob_start_len": 0, "return_prompt_token_ids": True, "return_hidden_states": True,
        "sampling_params": {"max_new_tokens": 3},
    }  # fmt: skip
    seen: set[str] = set()
    beams = {"text": "a", "sampling_params": {"beam_width": 2, "max_new_tokens": 1}}
    answers = [*await generate(client, body), *await stream(client, body)]
    for answer in [*answers, await generate(client, beams)]:
        GenerateAnswer.model_validate(answer)
        assert not [*unknown(GenerateAnswer, answer), *unknown(MetaInfo, answer["meta_info"])]
        seen |= answer["meta_info"].keys()
    assert seen == MetaInfo.model_fields.keys()
