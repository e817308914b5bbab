"""SGLang's frontend language against a server: ``sglang_frontend.py URL``."""

import json
import re
import sys

from sglang import (
    RuntimeEndpoint,
    assistant,
    assistant_begin,
    assistant_end,
    flush_cache,
    function,
    gen,
    get_server_info,
    select,
    set_default_backend,
    system,
    user,
)
from sglang.lang.choices import (
    greedy_token_selection,
    token_length_normalized,
    unconditional_likelihood_normalized,
)

IP_ADDRESS = r"((25[0-5]|2[0-4]\d|[01]?\d\d?).){3}(25[0-5]|2[0-4]\d|[01]?\d\d?)"
CHARACTER = (
    r"""\{\n"""
    r"""    "name": "[\w\d\s]{1,16}",\n"""
    r"""    "house": "(Gryffindor|Slytherin|Ravenclaw|Hufflepuff)",\n"""
    r"""    "wand": \{\n"""
    r"""        "wood": "[\w\d\s]{1,16}",\n"""
    r"""        "length": [0-9]{1,2}\.[0-9]{0,2}\n"""
    r"""    \}\n"""
    r"""\}"""
)


@function
def basic_qa(s, question):
    s += system("You are a helpful assistant than can answer questions.")
    s += user(question)
    s += assistant(gen("answer", max_tokens=32, temperature=0))


@function
def multi_turn(s):
    s += system("You are a helpful assistant than can answer questions.")
    s += user("Please give me a list of 3 countries and their capitals.")
    s += assistant(gen("first_answer", max_tokens=24))
    s += user("Please give me another list of 3 countries and their capitals.")
    s += assistant(gen("second_answer", max_tokens=24))
    return s


@function
def tool_use(s, question):
    s += assistant(
        "To answer this question: " + question + ". I need to use a "
        + gen("tool", choices=["calculator", "search engine"]) + ". "
    )  # fmt: skip
    if s["tool"] == "calculator":
        s += assistant("The math expression is: " + gen("expression", max_tokens=8))
    else:
        s += assistant("The key word to search is: " + gen("word", max_tokens=8))


@function
def chosen_by(s, method):
    s += "The capital of France is"
    s += select("city", choices=[" Paris", " Banana", " Berlin wall"], choices_method=method)


@function
def tips(s):
    s += system("You are a helpful assistant.")
    s += user("Here are two tips for staying healthy: 1. Balanced diet. 2. Regular exercise.")
    forks = s.fork(2)
    for i, fork in enumerate(forks):
        fork += assistant("Detailed tip: " + gen("detailed_tip", max_tokens=12, stop="\n\n"))
        assert i < 2
    s += assistant("Tip 1:" + forks[0]["detailed_tip"] + "\nTip 2:" + forks[1]["detailed_tip"])
    s += user("Please summarize.")
    s += assistant(gen("summary", max_tokens=8))


@function
def constrained(s):
    s += user("What is the IP address of the Google DNS servers?")
    s += assistant(gen("answer", temperature=0, regex=IP_ADDRESS))


@function
def character(s, name):
    s += user(f"{name} is a character in Harry Potter. Please fill in the information.")
    s += assistant(gen("json_output", max_tokens=256, regex=CHARACTER))


@function
def typed(s):
    s += "The number of days in a week is" + gen("days", dtype=int, temperature=0)
    s += " and I say " + gen("word", dtype=str, temperature=0, max_tokens=16)


@function
def schema(s):
    asked = {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}, "n": {"type": "integer", "maximum": 9}},
        "required": ["city", "n"],
        "additionalProperties": False,
    }
    s += user("Answer as JSON.")
    s += assistant(gen("answer", json_schema=json.dumps(asked), temperature=0, max_tokens=48))


@function
def scored(s):
    s += "The capital of France is" + gen(
        "answer", max_tokens=4, temperature=0, return_logprob=True, logprob_start_len=0,
        top_logprobs_num=2, return_text_in_logprobs=True,
    )  # fmt: skip


@function
def begun_and_ended(s, question):
    with s.user():
        s += question
    s += assistant_begin() + "Answer: " + gen("answer", max_tokens=8, temperature=0)
    s += assistant_end()


def check_choices() -> None:
    state = tool_use("What is 2 * 2?")
    assert state["tool"] in ("calculator", "search engine")
    assert state["expression" if state["tool"] == "calculator" else "word"] is not None
    for method in (
        token_length_normalized,
        greedy_token_selection,
        unconditional_likelihood_normalized,
    ):
        assert chosen_by(method)["city"] == " Paris", method


def check_grammars() -> None:
    assert re.fullmatch(IP_ADDRESS, constrained()["answer"])
    filled = json.loads(character("Hermione Granger")["json_output"])
    assert set(filled) == {"name", "house", "wand"}
    state = typed()
    assert isinstance(int(state["days"]), int)
    assert re.fullmatch(r'"[\w\d\s]*"', state["word"]), state["word"]
    answer = json.loads(schema()["answer"])
    assert answer["city"] in ("Paris", "Rome") and answer["n"] <= 9


def check_streams() -> None:
    state = basic_qa.run(question="What is the capital of France?", stream=True)
    pieces = list(state.text_iter())
    assert "".join(pieces) == state.text()
    assert len(pieces) > 3
    whole = basic_qa(question="What is the capital of France?")
    assert whole["answer"] == state["answer"] and "Paris" in whole["answer"]


def main(url: str) -> None:
    backend = RuntimeEndpoint(url)
    set_default_backend(backend)
    assert flush_cache() is None
    assert get_server_info()["page_size"] >= 1
    check_streams()
    state = multi_turn()
    assert state["first_answer"] and state["second_answer"]
    check_choices()
    assert tips()["summary"]
    asked = [{"question": f"What is the capital of {name}?"} for name in ("France", "Italy")] * 8
    states = basic_qa.run_batch(asked, progress_bar=False)
    assert [len({s["answer"] for s in states[i::2]}) for i in (0, 1)] == [1, 1]
    check_grammars()
    info = scored().get_meta_info("answer")
    assert info["input_token_logprobs"][0][0] is None
    assert len(info["input_token_logprobs"]) == info["prompt_tokens"]
    assert len(info["output_top_logprobs"]) == 4
    assert begun_and_ended("What is the capital of Spain?")["answer"]
    state = tips.run(backend=backend)
    print("frontend ok")


if __name__ == "__main__":
    main(sys.argv[1])
