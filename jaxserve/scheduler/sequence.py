"""One stream of tokens being generated."""

from array import array
from dataclasses import dataclass, field
from enum import Enum

from jaxserve.batch import PADDING_SLOT
from jaxserve.request import Request
from jaxserve.scheduler.radix_tree import RadixNode


class Status(Enum):
    """Where a sequence is; exactly one of these at any time."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Sequence:
    """Prompt and output of one request, and how far its KV has got.

    Counters move when a step is *launched*, tokens when it is *fetched*:

        tokens         p p p p p p o o            prompt, then confirmed output
        num_inflight                   ? ?        sampled on the device, ids not fetched yet
        num_computed   |______________|           KV exists, or will after steps launched already

    While decoding, ``num_computed == num_tokens + num_inflight - 1``: the next step's input is
    the newest token, confirmed or not, and it sits at position ``num_computed``.
    """

    request: Request
    arrival: int  # how many sequences were added before this one
    max_new_tokens: int
    stop_ids: frozenset[int]  # EOS ids unless ignored, and the request's own
    tokens: "array[int]"  # int32: the radix tree and the plans read it as a buffer
    # Position of the first prompt token whose logprob is wanted and no launched step computes;
    # num_prompt when there is none.  A retraction leaves it: nothing is reported twice.
    next_prompt_logprob: int
    # Likewise the first position whose hidden state is wanted; None when none is.
    next_hidden_state: int | None = None
    slot: int = PADDING_SLOT  # row in the device's token table while it holds pages
    num_computed: int = 0
    num_inflight: int = 0
    num_cached: int = 0  # prompt tokens found in the prefix cache when first admitted
    num_retractions: int = 0
    pages: list[int] = field(default_factory=list)
    prefix: RadixNode | None = None  # locked while it is used; owns pages[:prefix.end]
    status: Status = Status.WAITING

    @property
    def rid(self) -> str:
        """The request's id."""
        return self.request.rid

    @property
    def num_tokens(self) -> int:
        """Prompt and confirmed output tokens."""
        return len(self.tokens)

    @property
    def num_prompt(self) -> int:
        """Prompt tokens."""
        return len(self.request.prompt_ids)

    @property
    def num_output(self) -> int:
        """Confirmed output tokens."""
        return len(self.tokens) - len(self.request.prompt_ids)

    @property
    def num_matchable(self) -> int:
        """How many of its first tokens the prefix cache may supply.

        A logprob comes from computing the token before, and a hidden state from computing the
        token itself, so those must not be cached.
        """
        count = len(self.tokens)
        if self.next_prompt_logprob < self.num_prompt:
            count = max(0, self.next_prompt_logprob - 1)
        if self.next_hidden_state is not None:
            count = min(count, self.next_hidden_state)
        return count

    @property
    def num_uncomputed(self) -> int:
        """Known tokens that no launched step computes; 0 or less once it decodes."""
        return len(self.tokens) - self.num_computed

    @property
    def is_half_prefilled(self) -> bool:
        """Holds pages while it waits for its next chunk."""
        return self.status is Status.WAITING and self.slot != PADDING_SLOT

    @property
    def has_run(self) -> bool:
        """Some step was launched for it; a waiting one goes before those that never ran."""
        return self.slot != PADDING_SLOT or self.num_retractions > 0

    @property
    def can_decode(self) -> bool:
        """Another token may be sampled; every token that is in flight counts as output."""
        num_output = len(self.tokens) - len(self.request.prompt_ids)  # asked of each row, each step
        return num_output + self.num_inflight < self.max_new_tokens

    @property
    def wants_sample(self) -> bool:
        """False for a request of no tokens at all, which only fills the prefix cache."""
        return self.max_new_tokens > 0


def make_sequence(request: Request, arrival: int, eos_token_ids: tuple[int, ...]) -> Sequence:
    """Build the waiting sequence of a request.

    Raises:
        ValueError: an empty prompt, or a ``None`` left in ``max_new_tokens`` or ``seed``; the
            caller fills those before.
    """
    sampling = request.sampling
    if not request.prompt_ids:
        raise ValueError(f"request {request.rid} has no prompt tokens; give at least one")
    if sampling.max_new_tokens is None or sampling.seed is None:
        raise ValueError(
            f"request {request.rid} has max_new_tokens={sampling.max_new_tokens} and "
            f"seed={sampling.seed}; both must be numbers before it is added"
        )
    eos = () if sampling.ignore_eos else eos_token_ids
    start = sampling.prompt_logprobs_start
    return Sequence(
        request=request,
        arrival=arrival,
        max_new_tokens=sampling.max_new_tokens,
        stop_ids=frozenset(eos) | frozenset(sampling.stop_token_ids),
        tokens=array("i", request.prompt_ids),
        next_prompt_logprob=len(request.prompt_ids) if start is None else start,
        next_hidden_state=_first_hidden_state(request),
    )


def _first_hidden_state(request: Request) -> int | None:
    match request.sampling.hidden_states:
        case "all":
            return 0
        case "last":
            return len(request.prompt_ids) - 1
        case None:
            return None
