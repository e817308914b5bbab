"""How much of a request is taken: the depth of its JSON.  Its bytes, aiohttp counts."""

import re
from itertools import accumulate

MAX_NESTING = 128  # levels; a JSON schema takes two or three for each of its own
# Possessive: a long string is one step, and nothing is kept to go back to.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEPS = {byte: 1 if byte in b"[{" else -1 for byte in b"[]{}"}


def is_too_deep(raw: bytes, limit: int = MAX_NESTING) -> bool:
    """Whether the valid JSON ``raw`` has more than ``limit`` levels of objects and arrays.

    Code that walks a body may then recurse.  Nearly every body has fewer brackets than levels are
    allowed, and costs two scans for a byte; the others cost 50 ns per bracket.
    """
    if raw.count(b"[") + raw.count(b"{") <= limit:
        return False
    brackets = _STRING.sub(b"", raw).translate(None, _NO_BRACKETS)
    return max(accumulate(map(_STEPS.__getitem__, brackets)), default=0) > limit
