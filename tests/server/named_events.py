"""Server-sent events that have a name, as Anthropic's and OpenAI's newer API stream them."""

import json


def named_events(raw: str) -> list[dict]:
    """The data of every event of a whole stream; an event's name is its type."""
    *blocks, end = raw.split("\n\n")
    assert end == ""
    events = []
    for block in blocks:
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    return events
