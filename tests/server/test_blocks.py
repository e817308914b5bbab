"""An answer as blocks: the same however it was cut into deltas, and nothing of it lost."""

from hypothesis import given
from hypothesis import strategies as st

from jaxserve.parsers import ToolCallDelta
from jaxserve.request import TextChunk, TokenLogprob, Usage
from jaxserve.server.blocks import Block, BlockReader, Kind
from jaxserve.server.chat_delta import Delta, TurnFinish

STOP = TurnFinish("stop", 2)
Piece = tuple[str, str]  # what it is, and its text

text = st.text("ab \n", max_size=3)
pieces = st.lists(st.tuples(st.sampled_from(["reasoning", "content", "call", "more"]), text))


def delta(kind: str = "", piece: str = "", index: int = 0, finish: TurnFinish | None = None,
          logprobs: tuple[TokenLogprob, ...] = ()) -> Delta:  # fmt: skip
    calls: tuple[ToolCallDelta, ...] = ()
    if kind == "call":
        calls = (
            ToolCallDelta(index, f"id{index}", "f", ""),
            ToolCallDelta(index, None, None, piece),
        )
    elif kind == "more" and index >= 0:
        calls = (ToolCallDelta(index, None, None, piece),)
    return Delta(
        0, piece if kind == "reasoning" else "", piece if kind == "content" else "", calls,
        finish, TextChunk(rid="r", index=0, text="", token_ids=(1,), logprobs=logprobs,
                          usage=Usage(1, 2, 0)), 3,
    )  # fmt: skip


def deltas_of(given_pieces: list[Piece]) -> list[Delta]:
    """Calls count up; ``more`` adds to the call before it, and is nothing after anything else."""
    index, is_call, deltas = -1, False, []
    for kind, piece in given_pieces:
        if kind == "more" and not is_call:
            continue
        is_call = kind in ("call", "more")
        index += kind == "call"
        deltas.append(delta(kind, piece, index))
    return [*deltas, delta(finish=STOP)]


def replay(reader: BlockReader, deltas: list[Delta]) -> list[Block]:
    """The blocks that the events tell, each opened, grown and closed before the next."""
    blocks: list[Block] = []
    is_open = False
    for each in deltas:
        for event in reader.push(each):
            match event.type:
                case "open":
                    assert not is_open
                    source = event.block
                    assert source.index == len(blocks)
                    blocks.append(Block(source.kind, source.index, source.call_id, source.name))
                    is_open = True
                case "grow":
                    assert is_open
                    blocks[-1].pieces.append(event.text)
                case "close":
                    is_open = False
                    assert event.is_end == (each.finish is not None)
    assert not is_open
    return blocks


def told(blocks: list[Block]) -> list[tuple[Kind, str, str]]:
    return [(block.kind, block.call_id, block.text) for block in blocks]


@given(pieces)
def test_events_tell_the_blocks(given_pieces: list[Piece]) -> None:
    reader = BlockReader()
    blocks = replay(reader, deltas_of(given_pieces))
    assert told(blocks) == told(reader.blocks)
    assert blocks, "an empty answer is an empty text"
    assert reader.finish == STOP
    assert reader.usage == Usage(1, 2, 0)
    assert reader.reasoning_tokens == 3


@given(pieces)
def test_only_white_space_between_blocks_is_lost(given_pieces: list[Piece]) -> None:
    blocks = replay(BlockReader(), deltas := deltas_of(given_pieces))

    def joined(kind: Kind) -> str:
        return "".join(block.text for block in blocks if block.kind is kind)

    assert joined(Kind.REASONING) == "".join(each.reasoning for each in deltas)
    said = "".join(each.content for each in deltas)
    assert "".join(joined(Kind.TEXT).split()) == "".join(said.split())
    arguments = [call.arguments for each in deltas for call in each.calls]
    assert joined(Kind.CALL) == "".join(arguments)
    assert sum(block.kind is Kind.CALL for block in blocks) == sum(
        call.id is not None for each in deltas for call in each.calls
    )


@given(text, text, st.integers(0, 6))
def test_cuts_do_not_matter(reasoning: str, content: str, cut: int) -> None:
    whole = [delta("reasoning", reasoning), delta("content", content), delta(finish=STOP)]
    cut_up = [
        delta("reasoning", reasoning[:cut]), delta("reasoning", reasoning[cut:]),
        delta("content", content[:cut]), delta("content", content[cut:]), delta(finish=STOP),
    ]  # fmt: skip
    assert told(replay(BlockReader(), whole)) == told(replay(BlockReader(), cut_up))


def test_white_space_before_a_call_is_no_block() -> None:
    deltas = deltas_of([("reasoning", "a"), ("content", "\n\n"), ("call", "{}")])
    assert told(replay(BlockReader(), deltas)) == [
        (Kind.REASONING, "", "a"), (Kind.CALL, "id0", "{}")
    ]  # fmt: skip


def test_an_answer_of_white_space_is_kept() -> None:
    blocks = replay(BlockReader(), [delta("content", "\n"), delta("content", " ", finish=STOP)])
    assert told(blocks) == [(Kind.TEXT, "", "\n ")]


def test_logprobs_go_with_the_text() -> None:
    def tokens(*ids: int) -> tuple[TokenLogprob, ...]:
        return tuple(TokenLogprob(i, -1.0) for i in ids)

    reader = BlockReader()
    replay(reader, [
        delta("reasoning", "a", logprobs=tokens(1)), delta("content", "\n", logprobs=tokens(2)),
        delta("content", "b", logprobs=tokens(3)), delta("", logprobs=tokens(4)),
        delta(finish=STOP),
    ])  # fmt: skip
    assert [item.token_id for item in reader.blocks[1].logprobs] == [2, 3, 4]
    assert not reader.blocks[0].logprobs
