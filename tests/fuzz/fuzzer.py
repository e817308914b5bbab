"""Fire requests of ``bodies`` at a server, and say what came back that should not have.

It aborts what others generate and fills the cache: point it at a server of your own.  No problems
means: no 5xx that is not by design, no hang, and the server is idle, well, and says the same.
"""

import asyncio
import itertools
import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field

import aiohttp
from e2e.live_server import SMALL
from fuzz.bodies import SEEDS, FuzzRequest, make_request

# of the server: everything that can be on, and small enough to fill
FLAGS = (
    f"{SMALL} --reasoning-parser qwen3 --enable-strict-thinking --tool-call-parser hermes "
    "--enable-response-store --enable-return-hidden-states"
)
NO_CACHE = "--disable-radix-cache"  # needed for input_embeds
TIMEOUT_S = 60.0
CONCURRENCY = 24
# 501: a capability that is not built; 503: the queue is full, or the request timed out in it
BY_DESIGN = (501, 503)
PROBES = ("The capital of France is", "1 2 3 4", "hello", "xyz" * 20)


@dataclass
class Report:
    """What was sent and answered."""

    statuses: Counter[int] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def num_requests(self) -> int:
        return sum(self.statuses.values())

    def problem(self, what: str, request: FuzzRequest) -> None:
        self.problems.append(f"{what} ← {request.path} {request.content_type} {request.data!r}")


async def fuzz(
    url: str, *, num_requests: int, seed: int, paths: tuple[str, ...] = tuple(SEEDS)
) -> Report:
    """Send ``num_requests``, and check the server before and after."""
    report = Report()
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with aiohttp.ClientSession(
        url, timeout=timeout, connector=aiohttp.TCPConnector(limit=0)
    ) as session:
        before = await _said(session)
        started_s = time.monotonic()
        numbers = itertools.count()
        workers = [
            _work(session, report, numbers, num_requests, seed, paths) for _ in range(CONCURRENCY)
        ]
        await asyncio.gather(*workers)
        report.seconds = time.monotonic() - started_s
        await _check_after(session, report, before)
    return report


async def _work(
    session: aiohttp.ClientSession,
    report: Report,
    numbers: "itertools.count[int]",
    num_requests: int,
    seed: int,
    paths: tuple[str, ...],
) -> None:
    while (number := next(numbers)) < num_requests:
        # each by itself: what is sent does not depend on the order of the answers
        rng = random.Random(f"{seed}/{number}")
        request = make_request(rng, paths)
        leaves_early = rng.random() < 0.02
        await _send(session, report, request, leaves_early)


async def _send(
    session: aiohttp.ClientSession, report: Report, request: FuzzRequest, leaves_early: bool
) -> None:
    headers = {"Content-Type": request.content_type} if request.content_type else {}
    try:
        async with session.post(request.path, data=request.data, headers=headers) as response:
            report.statuses[response.status] += 1
            if leaves_early:
                response.close()
                return
            text = await response.text(errors="replace")
            if response.status >= 500 and response.status not in BY_DESIGN:
                report.problem(f"{response.status} {text[:300]}", request)
            elif response.status >= 400 and not _is_error(text):
                report.problem(f"{response.status} without a message: {text[:300]!r}", request)
            elif "Traceback" in text:
                report.problem("a traceback in the answer", request)
    except TimeoutError:
        report.statuses[0] += 1
        report.problem(f"no answer within {TIMEOUT_S} s", request)
    except aiohttp.ClientError as error:
        report.statuses[0] += 1
        report.problem(f"{type(error).__name__}: {error}", request)


def _is_error(text: str) -> bool:
    """A client could tell its user something."""
    try:
        body = json.loads(text)
    except ValueError:
        return bool(text.strip())
    return isinstance(body, dict) and any(key in body for key in ("error", "message", "detail"))


async def _check_after(session: aiohttp.ClientSession, report: Report, before: list[str]) -> None:
    deadline_s = time.monotonic() + TIMEOUT_S
    while True:
        async with session.get("/server_info") as response:
            state = (await response.json())["internal_states"][0]
        if not (state["num_running_reqs"] or state["num_waiting_reqs"]):
            break
        if time.monotonic() > deadline_s:
            report.problems.append(f"still at work {TIMEOUT_S} s after the last answer: {state}")
            break
        await asyncio.sleep(0.1)
    if state["num_used_tokens"]:
        report.problems.append(f"KV pages are lost: {state['num_used_tokens']} tokens in use")
    after = await _said(session)
    if after != before:
        report.problems.append(f"greedy answers have changed: {before} → {after}")


async def _said(session: aiohttp.ClientSession) -> list[str]:
    """Greedy answers to a few prompts."""
    texts = []
    for prompt in PROBES:
        body = {"text": prompt, "sampling_params": {"temperature": 0, "max_new_tokens": 16}}
        async with session.post("/generate", json=body) as response:
            texts.append(json.dumps((await response.json())["output_ids"]))
    return texts
