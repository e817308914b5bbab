"""The harmony format of GPT-OSS: an answer is a row of messages, each on a channel.

<|channel|>analysis<|message|>the reasoning<|end|>
<|start|>assistant<|channel|>commentary to=functions.name <|constrain|>json<|message|>{}<|call|>
<|start|>assistant<|channel|>final<|message|>the answer<|return|>
"""

import re
from dataclasses import dataclass

from jaxserve.parsers.calls import CallSink
from jaxserve.parsers.json_calls import announced_arguments
from jaxserve.parsers.source import Emit, Markers, Steps, TextSource

MAX_HEADER_LENGTH = 512

MESSAGE = "<|message|>"
ENDS = ("<|end|>", "<|call|>", "<|return|>")
START, CHANNEL = "<|start|>", "<|channel|>"
STARTS = (START, CHANNEL)
_STARTS = Markers(STARTS)
_BODY_ENDS = Markers((*ENDS, *STARTS))
_HEADER_ENDS = Markers((MESSAGE, *STARTS))
# All that a header may say: the words of one that says anything else are not dropped.
# Possessive: with backtracking a model's output could take exponential time.
_HEADER = re.compile(
    r"(?:assistant|analysis|commentary|final|json|code|to=[^\s<]++|\s"
    r"|<\|start\|>|<\|channel\|>|<\|constrain\|>[A-Za-z_]*+)*+"
)
_CHANNEL = re.compile(r"<\|channel\|>\s*(analysis|commentary|final)\b")
_RECIPIENT = re.compile(r"\bto=([^\s<]+)")


def _header(source: TextSource, marker: str) -> Steps[str | None]:
    """Read on from ``marker`` to the message, and return all before it; None: it is no header."""
    header = marker
    while True:
        part = yield from source.name(_HEADER_ENDS, MAX_HEADER_LENGTH)
        if part is None:
            return None
        header += part
        ends = (MESSAGE,) if CHANNEL in header else (MESSAGE, CHANNEL)
        end = yield from source.literal(*ends)
        if end != CHANNEL:
            is_header = end is not None and _HEADER.fullmatch(header)
            return header if is_header else None
        header += CHANNEL


def split_messages(
    source: TextSource, reasoning: Emit, content: Emit, starts_inside: bool
) -> Steps[None]:
    """Send the analysis to ``reasoning``, and the other messages' text to ``content``.

    Messages to a tool, and what has no known header, go to ``content`` with all their markup:
    HarmonyCalls reads the calls from there.  ``starts_inside``: the text goes on with the body of
    an analysis.
    """
    targets = {"analysis": reasoning, "commentary": content, "final": content}
    is_text, target = starts_inside, reasoning if starts_inside else content
    while True:
        end = yield from source.until(_BODY_ENDS, target)
        if end is None:
            return
        if end in ENDS:
            if not is_text:
                content(end)
            is_text, target = False, content
            continue
        source.start_record(end)
        header = yield from _header(source, end)
        record = source.end_record()
        channel = None if header is None else _CHANNEL.search(header)
        is_text = channel is not None and _RECIPIENT.search(record) is None
        target = targets[channel[1]] if channel is not None and is_text else content
        if not is_text:
            content(record)


@dataclass(frozen=True, kw_only=True)
class HarmonyCalls:
    """Messages to ``functions.name`` whose body is JSON; every other text is content as it is."""

    namespace: str = "functions."

    def run(self, source: TextSource, sink: CallSink) -> Steps[None]:
        """Read a whole text."""
        while (marker := (yield from source.until(_STARTS, sink.content))) is not None:
            source.start_record(marker)
            header = yield from _header(source, marker)
            recipients = [] if header is None else _RECIPIENT.findall(header)
            name = recipients[0].removeprefix(self.namespace) if len(recipients) == 1 else ""
            if name in sink.tools:
                yield from source.skip_space()
                if (yield from announced_arguments(source, sink, name)):
                    yield from source.skip_space()
                    yield from source.literal(*ENDS)
                    source.end_record()
            sink.reject()
