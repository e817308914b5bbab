"""The client against a fake server that speaks the three streaming formats."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from bench_serving import build_parser, build_workload, check
from serving_client import Target, event_times, request_body, run_workload, shortened
from workloads import Conversation, Lengths, Turn, multi_turn_workload, random_workload

NUM_TOKENS = 4


class FakeServer:
    """Streams ``NUM_TOKENS`` tokens in the format of the path; keeps what it was asked."""

    def __init__(self) -> None:
        self.bodies: list[dict] = []
        self.open = self.most_open = 0
        self.pause_s = 0.0
        self.is_cut = False

    def app(self) -> web.Application:
        app = web.Application()
        for path in ("/generate", "/v1/completions", "/v1/chat/completions"):
            app.router.add_post(path, self.answer)
        return app

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        if body.get("model") == "unknown":
            return web.json_response({"error": "no such model"}, status=404)
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for event in self.events(request.path, body):
            await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
            await asyncio.sleep(self.pause_s)
        self.open -= 1
        if not self.is_cut:
            await response.write(b"data: [DONE]\n\n")
        return response

    def events(self, path: str, body: dict) -> Iterator[dict]:
        if path == "/generate":
            for count in range(1, NUM_TOKENS + 1):
                finish = {"type": "length", "length": count} if count == NUM_TOKENS else None
                meta = {"prompt_tokens": len(body["input_ids"]), "completion_tokens": count}
                meta |= {"cached_tokens": 1, "finish_reason": finish}
                yield {"text": "x" * count, "output_ids": [7] * count, "meta_info": meta}
            return
        is_chat = path.endswith("chat/completions")
        if is_chat:
            yield {"choices": [{"delta": {"role": "assistant", "content": ""}}]}
        for _ in range(NUM_TOKENS):
            yield {"choices": [{"delta": {"content": "x"}} if is_chat else {"text": "x"}]}
        usage = {"prompt_tokens": 5, "completion_tokens": NUM_TOKENS}
        yield {"choices": [], "usage": usage | {"prompt_tokens_details": {"cached_tokens": 2}}}


@pytest.fixture
async def fake() -> AsyncIterator[tuple[FakeServer, str]]:
    server = FakeServer()
    async with TestServer(server.app()) as live:
        yield server, str(live.make_url("")).rstrip("/")


@pytest.mark.parametrize("backend", ["sglang", "jaxserve", "vllm", "sglang-oai-chat"])
async def test_one_result_per_request_with_one_gap_per_later_token(
    fake: tuple[FakeServer, str], backend: str
) -> None:
    fake[0].pause_s = 0.01
    prompt = "hello" if backend.endswith("chat") else (1, 2, 3, 4, 5)
    workload = [Conversation((Turn(prompt, 5, NUM_TOKENS),))] * 2
    target = Target(base_url=fake[1], backend=backend)
    results, duration = await run_workload(target, workload, [0.0, 0.0])
    for result in results:
        assert (result.error, result.prompt_len, result.output_len) == ("", 5, NUM_TOKENS)
        assert result.text == "x" * NUM_TOKENS
        assert result.num_cached == (1 if target.url.endswith("/generate") else 2)
        assert len(result.itl_s) == NUM_TOKENS - 1
        assert min(result.itl_s) > 0.005
        assert result.ttft_s + sum(result.itl_s) == pytest.approx(result.latency_s)
        assert result.latency_s <= duration


async def test_concurrency_is_bounded_and_arrivals_are_waited_for(
    fake: tuple[FakeServer, str],
) -> None:
    fake[0].pause_s = 0.005
    workload = random_workload(6, Lengths(4, 4), 100, seed=0)
    target = Target(base_url=fake[1], backend="sglang")
    await run_workload(target, workload, [0.0] * 6, max_concurrency=2)
    assert fake[0].most_open == 2
    _, duration = await run_workload(target, workload[:1], [0.2])
    assert duration >= 0.2


async def test_a_later_turn_brings_the_earlier_ones(fake: tuple[FakeServer, str]) -> None:
    workload = multi_turn_workload(1, 2, Lengths(3, 4), 100, seed=0)
    target = Target(base_url=fake[1], backend="sglang")
    await run_workload(target, workload, [0.0])
    first, second = (body["input_ids"] for body in fake[0].bodies)
    assert second == [*first, *[7] * NUM_TOKENS, *workload[0].turns[1].prompt]

    chat = [Conversation((Turn("a", 1, 4), Turn("b", 1, 4)))]
    fake[0].bodies.clear()
    await run_workload(Target(base_url=fake[1], backend="vllm-chat"), chat, [0.0])
    contents = [message["content"] for message in fake[0].bodies[1]["messages"]]
    assert contents == ["a", "x" * NUM_TOKENS, "b"]


async def test_a_refused_and_a_cut_request_are_results_with_an_error(
    fake: tuple[FakeServer, str],
) -> None:
    workload = [Conversation((Turn((1,), 1, 4), Turn((1,), 1, 4)))]
    refused = Target(base_url=fake[1], backend="vllm", model="unknown")
    results, _ = await run_workload(refused, workload, [0.0])
    assert [result.error[:8] for result in results] == ["HTTP 404"]  # the second turn is not sent
    fake[0].is_cut = True
    cut, _ = await run_workload(Target(base_url=fake[1], backend="sglang"), workload, [0.0])
    assert cut[0].error == "the stream ended without data: [DONE]"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_events_are_timed_by_the_chunk_that_completes_them(size: int) -> None:
    stream = b'data: {"a":"\\n\\n"}\n\ndata: 2\n\ndata: [DONE]\n\n'
    chunks = [stream[at : at + size] for at in range(0, len(stream), size)]
    ends = [at + 2 for at in range(len(stream)) if stream[at : at + 2] == b"\n\n"]
    expected = [float((end - 1) // size) for end in ends]
    assert event_times(chunks, [float(index) for index in range(len(chunks))]) == expected


def test_bodies_carry_the_limits_and_what_the_user_adds() -> None:
    native = Target(base_url="", backend="sglang", ignore_eos=False, extra_body={"rid": "a"})
    body = request_body(native, (1, 2), 9)
    assert body["input_ids"] == (1, 2)
    assert body["sampling_params"]["max_new_tokens"] == 9
    assert body["sampling_params"]["ignore_eos"] is False
    assert body["rid"] == "a"
    plain = Target(base_url="", backend="vllm", is_stream=False)
    assert "stream_options" not in request_body(plain, "hi", 9)


def test_a_warm_up_asks_one_short_turn() -> None:
    workload = multi_turn_workload(2, 3, Lengths(4, 50), 100, seed=0)
    assert [[t.output_len for t in talk.turns] for talk in shortened(workload, 8)] == [[8], [8]]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--backend", "vllm-chat"], "needs --tokenizer FOLDER"),
        (["--backend", "vllm-chat", "--tokenize-prompt"], "the chat API takes text only"),
        (["--backend", "vllm", "--dataset-name", "multi-turn"], "needs the answers' ids"),
        (["--request-rate", "0"], "--request-rate must be above 0"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(flags: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        check(build_parser().parse_args(flags))


@pytest.mark.parametrize("dataset", ["random-ids", "generated-shared-prefix", "multi-turn"])
def test_every_dataset_without_a_tokenizer_is_ids(dataset: str) -> None:
    small = ["--num-prompts", "3", "--gsp-num-groups", "1", "--gsp-prompts-per-group", "3"]
    args = build_parser().parse_args(["--dataset-name", dataset, *small])
    check(args)
    workload = build_workload(args, None, args.seed)
    assert len(workload) == 3
    assert all(isinstance(turn.full_prompt, tuple) for talk in workload for turn in talk.turns)
    assert len(build_workload(args, None, args.seed, num_prompts=2)) == 2
