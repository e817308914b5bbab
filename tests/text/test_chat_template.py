from pathlib import Path

import pytest

from jaxserve.errors import InvalidRequestError, UnsupportedFeatureError
from jaxserve.text import Tokenizer, load_tokenizer, render_chat

USER = {"role": "user", "content": "What is the capital of France?"}
PARTS_TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "[{{ part['type'] }}:{{ part.text }}]{% endfor %}{% endfor %}"
)


@pytest.fixture(scope="module")
def demo(demo_model: Path) -> Tokenizer:
    return load_tokenizer(demo_model)


def with_template(demo_model: Path, tmp_path: Path, template: str) -> Tokenizer:
    file = tmp_path / "template.jinja"
    file.write_text(template)
    return load_tokenizer(demo_model, str(file))


def shown(tokenizer: Tokenizer, *args: object, **kwargs: object) -> str:
    ids = render_chat(tokenizer, *args, **kwargs)  # type: ignore[arg-type]
    return tokenizer.decode(ids, skip_special_tokens=False)


def test_demo_prompt(demo: Tokenizer) -> None:
    assert shown(demo, [USER]) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nWhat is the capital of France?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_text_parts_are_one_string_for_a_template_that_wants_strings(demo: Tokenizer) -> None:
    parts = [{"type": "text", "text": "What is"}, {"type": "text", "text": "the capital?"}]
    text = shown(demo, [{"role": "user", "content": parts}])
    assert "<|im_start|>user\nWhat is the capital?<|im_end|>" in text


@pytest.mark.parametrize(
    ("template", "keeps"),
    [
        (PARTS_TEMPLATE, True),
        ("{%- set content = messages[0].content -%}{%- for p in content %}<p>{%- endfor %}", True),
        (
            "{% for message in messages if message.content %}{{ message.content }}{% endfor %}",
            False,
        ),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", False),
    ],
)
def test_parts_stay_parts_for_a_template_that_loops_over_them(
    demo_model: Path, tmp_path: Path, template: str, keeps: bool
) -> None:
    tokenizer = with_template(demo_model, tmp_path, template)
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    text = shown(tokenizer, [{"role": "user", "content": parts}])
    assert (text == "a b") != keeps
    if template == PARTS_TEMPLATE:
        assert text == "[text:a][text:b]"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{% for m in messages %}{{ m.role }} {% endfor %}", "system tool "),
        ("{% if messages[0]['role'] == 'developer' %}dev{% endif %}", "dev"),
        (
            "{% for m in messages %}{% if m.role in ['tool', 'function'] %}{{ m.role }}{% endif %}"
            "{% endfor %}",
            "function",
        ),
        (
            "{# a function is called by #}{{ tools[0].type == 'function' }} {{ messages[1].role }}",
            "True tool",
        ),
    ],
)
def test_roles_that_a_template_does_not_know(
    demo_model: Path, tmp_path: Path, template: str, expected: str
) -> None:
    tokenizer = with_template(demo_model, tmp_path, template)
    messages = [{"role": "developer", "content": "a"}, {"role": "function", "content": "b"}]
    assert shown(tokenizer, messages, tools=[{"type": "function"}]) == expected


def test_a_developer_is_heard_by_a_template_of_systems_and_users(demo: Tokenizer) -> None:
    for role in ("system", "developer"):
        text = shown(demo, [{"role": role, "content": "Be brief."}, USER])
        assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>")


def test_continue_final_message_leaves_the_turn_open(demo: Tokenizer) -> None:
    begun = {"role": "assistant", "content": "The capital is"}
    text = shown(demo, [USER, begun], continue_final_message=True)
    assert text.endswith("<|im_start|>assistant\nThe capital is")


def test_tools_and_variables_reach_the_template(demo_model: Path, tmp_path: Path) -> None:
    template = (
        "{{ tools[0].function.name }} {{ thinking }} "
        "{% for m in messages %}{% if m.tool_calls %}{{ m.tool_calls[0].function.arguments.x }}"
        "{% endif %}{% endfor %}"
    )
    tokenizer = with_template(demo_model, tmp_path, template)
    tool = {"type": "function", "function": {"name": "add", "parameters": {}}}
    call = {"type": "function", "function": {"name": "add", "arguments": '{"x": 7}'}}
    answer = {"role": "assistant", "content": None, "tool_calls": [call]}
    text = shown(tokenizer, [USER, answer], tools=[tool], chat_template_kwargs={"thinking": "yes"})
    assert text == "add yes 7"
    assert call["function"]["arguments"] == '{"x": 7}'  # type: ignore[index]


def test_the_prompt_starts_with_one_bos(demo_model: Path, tmp_path: Path) -> None:
    tokenizer = with_template(demo_model, tmp_path, "{{ bos_token }}{{ messages[0].content }}")
    ids = render_chat(tokenizer, [{"role": "user", "content": "hi"}])
    assert ids.count(tokenizer.bos_token_id or -1) == 1


def test_missing_template_names_the_flag(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((tiny_checkpoint / "tokenizer.json").read_bytes())
    with pytest.raises(InvalidRequestError, match="this model has no chat template.*--chat-temp"):
        render_chat(load_tokenizer(tmp_path), [USER])


def test_what_the_template_says_is_passed_on(demo_model: Path, tmp_path: Path) -> None:
    template = (
        "{% if messages[0].role != 'user' %}{{ raise_exception('start with user') }}{% endif %}"
    )
    tokenizer = with_template(demo_model, tmp_path, template)
    refused = "the chat template refused the messages: start with user"
    with pytest.raises(InvalidRequestError, match=refused):
        render_chat(tokenizer, [{"role": "system", "content": "x"}])
    assert render_chat(tokenizer, [USER]) == []


@pytest.mark.parametrize(
    ("template", "content"),
    [
        ("{{ messages[0].content + 1 }}", "x"),
        ("{{ messages[0].content.nothing.at.all }}", "x"),
        ("{{ 1 / 0 }}", "x"),
        ("{{ ''.__class__.__mro__ }}", "x"),
        ("{% for", "x"),
    ],
)
def test_a_template_that_fails_is_an_error_of_the_request(
    demo_model: Path, tmp_path: Path, template: str, content: str
) -> None:
    tokenizer = with_template(demo_model, tmp_path, template)
    with pytest.raises(InvalidRequestError, match="the chat template refused the messages"):
        render_chat(tokenizer, [{"role": "user", "content": content}])


def test_bad_messages(demo: Tokenizer) -> None:
    with pytest.raises(InvalidRequestError, match="Messages cannot be empty"):
        render_chat(demo, [])
    image = {"type": "image_url", "image_url": {"url": "x"}}
    with pytest.raises(UnsupportedFeatureError, match="content parts of type 'image_url' are not"):
        render_chat(demo, [{"role": "user", "content": [image]}])
    with pytest.raises(InvalidRequestError, match="a content part of type 'text' needs a string"):
        render_chat(demo, [{"role": "user", "content": [{"type": "text", "text": 5}]}])
    for name in ("tokenize", "chat_template", "return_tensors", "messages"):
        with pytest.raises(InvalidRequestError, match="chat_template_kwargs must not set"):
            render_chat(demo, [USER], chat_template_kwargs={name: True})
