"""However an answer is cut, its deltas joined are what it is read as whole."""

from hypothesis import given, settings
from hypothesis import strategies as st

from jaxserve.request import FinishReason, TextChunk
from jaxserve.server.chat_delta import ChatAnswer, Delta, joined_calls
from jaxserve.server.chat_reader import ChoiceReader
from jaxserve.server.chat_reasoning import ReasoningUse
from jaxserve.server.chat_tools import ToolUse

TOKENS = (
    "<think>", "</think>", "\n", " ", "word", "é😀", "<tool_call>", "</tool_call>",
    '{"name": "f", "arguments": {"a": 1}}', '{"name": "f", ', '"arguments": {"b": "x"}}', "<", "[",
)  # fmt: skip
END, CALL = 1, 6
TOOLS = ({"type": "function", "function": {"name": "f"}},)

reasoning_uses = st.builds(
    ReasoningUse,
    format=st.sampled_from([None, "qwen3", "deepseek-r1"]),
    starts_inside=st.booleans(),
    end_ids=st.just((END,)),
    call_id=st.just(CALL),
    is_separate=st.booleans(),
    is_streamed=st.booleans(),
    ends_at_tool_call=st.booleans(),
)
tool_uses = st.builds(
    ToolUse,
    tools=st.just(TOOLS),
    is_read=st.booleans(),
    format=st.sampled_from([None, "qwen25"]),
    is_array=st.booleans(),
    max_calls=st.sampled_from([None, 1]),
)


def chunk(token_ids: list[int], *, is_last: bool) -> TextChunk:
    finish = FinishReason("stop", matched=99) if is_last else None
    text = "".join(TOKENS[i] for i in token_ids)
    return TextChunk(rid="r", index=0, text=text, token_ids=tuple(token_ids), finish=finish)


@given(
    answer=st.lists(st.lists(st.integers(0, len(TOKENS) - 1), max_size=3), max_size=8),
    reasoning=reasoning_uses,
    tools=tool_uses,
)
@settings(max_examples=400, deadline=None)
def test_deltas_joined_are_the_whole(
    answer: list[list[int]], reasoning: ReasoningUse, tools: ToolUse
) -> None:
    reader = ChoiceReader(0, reasoning, tools)
    deltas = [reader.push(chunk(ids, is_last=False)) for ids in answer]
    deltas.append(reader.push(chunk([], is_last=True)))
    all_ids = [i for ids in answer for i in ids]
    whole = ChatAnswer.of(ChoiceReader(0, reasoning, tools).push(chunk(all_ids, is_last=True)))
    assert joined(deltas) == (
        whole.reasoning,
        whole.content,
        [(call.name, call.arguments) for call in whole.calls],
        whole.finish,
        whole.reasoning_tokens,
    )


def joined(deltas: list[Delta]) -> tuple:
    calls = joined_calls([call for delta in deltas for call in delta.calls])
    return (
        "".join(delta.reasoning for delta in deltas),
        "".join(delta.content for delta in deltas),
        [(call.name, call.arguments) for call in calls],
        deltas[-1].finish,
        deltas[-1].reasoning_tokens,
    )
