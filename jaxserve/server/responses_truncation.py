"""``truncation: auto`` of /v1/responses: a conversation that is too long loses its beginning."""

from jaxserve.errors import ContextLengthError
from jaxserve.server.chat_turn import render_only
from jaxserve.server.chat_types import ChatBody
from jaxserve.server.state import ServerState

_INSTRUCTIONS = ("system", "developer")


async def truncated(state: ServerState, chat: ChatBody) -> ChatBody:
    """``chat`` without as many of its oldest turns as it takes to leave room for the answer.

    A turn begins with a user's message.  Leading instructions and the last turn stay, even where
    they do not fit: then the request is refused as any other that is too long.

    Raises:
        InvalidRequestError: the messages cannot be rendered.
    """
    info = state.llm.info
    limit = info.max_req_input_len + 1 - (chat.max_new_tokens or 1)  # the KV pool limits it too
    if await _fits(state, chat, limit):
        return chat
    messages = chat.messages
    roles = [message.get("role") for message in messages]
    begin = next((i for i, role in enumerate(roles) if role not in _INSTRUCTIONS), len(roles))
    turns = [i for i in range(begin, len(roles)) if i > begin and roles[i] == "user"] or [begin]
    low, high = 0, len(turns) - 1
    while low < high:  # the later it starts the shorter it is: find the first that fits
        middle = (low + high) // 2
        if await _fits(state, _from(chat, begin, turns[middle]), limit):
            high = middle
        else:
            low = middle + 1
    return _from(chat, begin, turns[low])


def _from(chat: ChatBody, begin: int, start: int) -> ChatBody:
    messages = [*chat.messages[:begin], *chat.messages[start:]]
    return chat.model_copy(update={"messages": messages})


async def _fits(state: ServerState, chat: ChatBody, limit: int) -> bool:
    try:
        return len(await render_only(state, chat, is_prompt=True)) <= limit
    except ContextLengthError:
        return False
