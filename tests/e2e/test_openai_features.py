"""The official client on real servers: parsed answers, tools, scores, thoughts and grammars."""

import openai
import pytest
from e2e.live_server import LiveServer
from pydantic import BaseModel

ALICE = [{"role": "user", "content": "Alice is 30 years old. Describe her as JSON."}]
WEATHER = [{"role": "user", "content": "What is the weather in Rome?"}]
THINK, END_OF_THOUGHT, END = 259, 260, 256


class Person(BaseModel):
    name: str
    age: int


class Weather(BaseModel):
    """The weather of a city."""

    city: str


TOOL = openai.pydantic_function_tool(Weather)


@pytest.fixture(scope="module")
def demo(demo_server: LiveServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{demo_server.url}/v1", api_key="None", max_retries=0)


@pytest.fixture(scope="module")
def thinker(thinking_server: LiveServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{thinking_server.url}/v1", api_key="None", max_retries=0)


# --- the demo model ---


def test_a_pydantic_model_is_parsed(demo: openai.OpenAI) -> None:
    asked = {"model": "m", "messages": ALICE, "temperature": 0, "max_tokens": 80}
    whole = demo.chat.completions.parse(**asked, response_format=Person)
    assert whole.choices[0].message.parsed == Person(name="Alice", age=30)
    with demo.chat.completions.stream(**asked, response_format=Person) as stream:
        streamed = stream.get_final_completion()
    assert streamed.choices[0].message.parsed == Person(name="Alice", age=30)


def test_a_tool_is_called(demo: openai.OpenAI) -> None:
    asked = {"model": "m", "messages": WEATHER, "temperature": 0, "max_tokens": 80}
    asked |= {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False}
    whole = demo.chat.completions.parse(**asked).choices[0]
    with demo.chat.completions.stream(**asked) as stream:
        streamed = stream.get_final_completion().choices[0]
    for choice in (whole, streamed):
        (call,) = choice.message.tool_calls
        assert isinstance(call.function.parsed_arguments, Weather)
        assert choice.finish_reason == "tool_calls"
    history = [
        *WEATHER,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [whole.message.tool_calls[0].to_dict()],
        },
        {"role": "tool", "tool_call_id": whole.message.tool_calls[0].id, "content": "sunny"},
    ]
    told = demo.chat.completions.create(model="m", messages=history, max_tokens=8, temperature=0)
    assert told.choices[0].message.content


def test_echo_scores_the_prompt_as_generation_does(demo: openai.OpenAI) -> None:
    prompt = "The capital of France is"
    asked = {"model": "m", "temperature": 1, "seed": 1, "logprobs": 1}
    made = demo.completions.create(**asked, prompt=prompt, max_tokens=6).choices[0]
    text = prompt + made.text
    echoed = demo.completions.create(**asked, prompt=text, max_tokens=0, echo=True).choices[0]
    assert echoed.text == text == "".join(echoed.logprobs.tokens)
    assert echoed.logprobs.token_logprobs[0] is None
    count = len(made.logprobs.tokens)
    assert echoed.logprobs.tokens[-count:] == made.logprobs.tokens
    assert echoed.logprobs.token_logprobs[-count:] == pytest.approx(
        made.logprobs.token_logprobs, abs=0.1
    )


def test_scores(demo: openai.OpenAI) -> None:
    """The most likely next token of a prompt has the highest score."""
    made = demo.chat.completions.with_raw_response.create(
        model="m", messages=WEATHER, max_tokens=1, temperature=0,
        extra_body={"return_token_ids": True},
    ).http_response.json()["choices"][0]  # fmt: skip
    labels = [made["token_ids"][0], 5, 6]
    body = {"query": made["prompt_token_ids"], "items": [[]], "label_token_ids": labels}
    (plain,) = demo.post("/score", body=body, cast_to=object)["scores"]
    assert plain[0] == max(plain)
    (shares,) = demo.post("/score", body=body | {"apply_softmax": True}, cast_to=object)["scores"]
    assert shares == pytest.approx([score / sum(plain) for score in plain])


# --- thoughts ---


def ask(thinker: openai.OpenAI, bias: dict[int, float], **more: object) -> dict:
    raw = thinker.chat.completions.with_raw_response.create(
        model="m", messages=WEATHER, max_tokens=40, seed=1, logprobs=True,
        logit_bias={str(token_id): value for token_id, value in bias.items()},
        extra_body={"regex": "[0-9]{3}", "return_token_ids": True, **more},
    )  # fmt: skip
    answer = raw.http_response.json()
    return answer["choices"][0] | {"usage": answer["usage"]}


def test_a_grammar_holds_after_the_thought(thinker: openai.OpenAI) -> None:
    choice = ask(thinker, {THINK: 50, END_OF_THOUGHT: 100})
    assert choice["token_ids"][:2] == [THINK, END_OF_THOUGHT]
    assert choice["token_ids"][-1] == choice["matched_stop"] == END
    assert choice["message"]["content"].isdecimal()
    assert len(choice["message"]["content"]) == 3
    assert choice["usage"]["reasoning_tokens"] == 2
    assert len(choice["logprobs"]["content"]) == len(choice["token_ids"]) == 6


def test_a_grammar_holds_at_once_without_a_thought(thinker: openai.OpenAI) -> None:
    free = ask(thinker, {THINK: -100})
    off = ask(thinker, {}, chat_template_kwargs={"enable_thinking": False})
    for choice in (free, off):
        assert choice["message"]["content"].isdecimal()
        assert choice["message"]["reasoning_content"] is None
        assert len(choice["token_ids"]) == 4


def test_a_thought_that_does_not_end_is_all_reasoning(thinker: openai.OpenAI) -> None:
    choice = ask(thinker, {THINK: 100, END_OF_THOUGHT: -100})
    assert choice["message"]["content"] is None
    assert choice["message"]["reasoning_content"]
    assert (choice["finish_reason"], choice["usage"]["reasoning_tokens"]) == ("length", 40)


def budget(tokens: int) -> dict:
    return {"reasoning": {"max_tokens": tokens}}


@pytest.mark.parametrize("regex", ["[0-9]{3}", ""])
@pytest.mark.parametrize("tokens", [1, 7])
def test_a_budget_ends_the_thought(thinker: openai.OpenAI, tokens: int, regex: str) -> None:
    """The mark is forced though the request makes it impossible, and the answer goes on."""
    bias = {THINK: 100, END_OF_THOUGHT: -100, END: 90}
    choice = ask(thinker, bias, regex=regex, **budget(tokens))
    assert choice["token_ids"].index(END_OF_THOUGHT) == tokens
    assert END not in choice["token_ids"][:tokens]  # which is strict
    assert choice["usage"]["reasoning_tokens"] == tokens + 1
    assert choice["message"]["content"].isdecimal() is bool(regex)


def test_the_native_api_has_budgets(thinking_server: LiveServer) -> None:
    answer = thinking_server.generate(
        text="a <think>", require_reasoning=True, max_thinking_tokens=5,
        sampling_params={
            "max_new_tokens": 30, "regex": "[0-9]{3}", "logit_bias": {END_OF_THOUGHT: -100},
        },
    )  # fmt: skip
    assert answer["output_ids"][5] == END_OF_THOUGHT
    assert answer["meta_info"]["reasoning_tokens"] == 6
    assert (len(answer["output_ids"]), answer["output_ids"][-1]) == (10, END)
    assert answer["text"][-3:].isdecimal()
    wrong = thinking_server.post("/generate", {"text": "a", "max_thinking_tokens": 5})
    assert wrong.json()["error"]["message"] == (
        "max_thinking_tokens=5 limits the reasoning of an output that begins with it; send "
        "require_reasoning: true with it."
    )
