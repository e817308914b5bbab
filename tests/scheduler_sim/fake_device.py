"""A device whose tokens depend on everything that it reads through the page table.

The "KV" of a position is a hash of the KV before it and of its token, as attention makes it; a
token is a hash of all the KV of its sequence.  A page that is lost, shared by mistake, or read
before it is written therefore changes the tokens.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from jaxserve.batch import Bucket, Mode, StepInputs, StepResult
from jaxserve.request import Request
from jaxserve.scheduler import BatchPlan

MASK = 2**64 - 1
WEIGHTS = np.arange(1, 2**14, 2, dtype=np.uint64)  # odd: every position counts


def mix(value: int) -> int:
    """A 64-bit hash (the finaliser of splitmix64)."""
    value = (value + 0x9E3779B97F4A7C15) & MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def next_kv(previous: int, token: int, salt: int = 0) -> int:
    """The KV of a token whose predecessor has the KV ``previous``.

    ``salt`` is the namespace's: KV of another namespace is not the same KV.
    """
    return mix(previous ^ (token + 1) ^ salt)


def salt_of(request: Request) -> int:
    """The salt of the request's cache namespace."""
    return mix(sum(request.cache_namespace.encode()))


Script = Mapping[int, tuple[int, ...]]
"""Output length → tokens that must come next: what a grammar would force."""


@dataclass
class SlotState:
    """What the device keeps for a slot beside its last token."""

    history: int = 0  # sum of output ids, of rows with a penalty
    stop_ids: frozenset[int] = frozenset()


@dataclass
class Launched:
    """A step that waits for its turn."""

    inputs: StepInputs
    salts: tuple[int, ...]  # of its rows
    sampling: set[int]  # rows


def choose_token(total: int, seed: int, vocab_size: int, forbidden: frozenset[int]) -> int:
    """A token by hash; hashed again while it is forbidden."""
    value = mix(total ^ mix(seed & MASK))
    while value % vocab_size in forbidden:
        value = mix(value)
    return value % vocab_size


@dataclass
class FakeDevice:
    """Executes steps in launch order, but only when fetched: late, like the real one."""

    num_pages: int
    page_size: int
    num_slots: int
    vocab_size: int
    buckets: tuple[Bucket, ...]
    kv: np.ndarray = field(init=False)
    last_tokens: list[int] = field(init=False)
    slots: list[SlotState] = field(init=False)
    queue: deque["Launched"] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.kv = np.arange(self.num_pages * self.page_size, dtype=np.uint64) + np.uint64(2**40)
        self.last_tokens = [-1] * self.num_slots
        self.slots = [SlotState() for _ in range(self.num_slots)]

    def launch(self, plan: BatchPlan, deferred: list[int]) -> None:
        """Enqueue a step; of its ``deferred`` rows ``sample`` says later which are sampled."""
        salts = tuple(salt_of(seq.request) for seq in plan.rows)
        sampling = set(np.flatnonzero(plan.inputs.sampling.samples).tolist())
        self.queue.append(Launched(plan.inputs, salts, sampling - set(deferred)))

    def sample(self, rows: list[int]) -> None:
        """Sample these deferred rows of the newest step."""
        self.queue[-1].sampling.update(rows)

    def fetch(self) -> StepResult:
        """Execute the oldest step and return its tokens."""
        launched = self.queue.popleft()
        inputs, salts = launched.inputs, launched.salts
        self._check_shapes(inputs)
        for init in inputs.slot_inits:
            self.slots[init.slot] = SlotState(sum(init.output_ids), frozenset(init.stop_ids))
        tokens = np.zeros(inputs.bucket.num_rows, np.int32)
        for row, kv_len in enumerate(inputs.kv_lens.tolist()):
            if kv_len:
                cells = self._cells(inputs.page_table[row], kv_len)
                self._write(inputs, row, cells, salts[row])
                if row in launched.sampling:
                    tokens[row] = self._sample(inputs, row, cells)
        return StepResult(token_ids=tokens)

    def _cells(self, table: np.ndarray, kv_len: int) -> np.ndarray:
        positions = np.arange(kv_len)
        return table[positions // self.page_size] * self.page_size + positions % self.page_size

    def _write(self, inputs: StepInputs, row: int, cells: np.ndarray, salt: int) -> None:
        start, stop = inputs.q_starts[row : row + 2].tolist()
        positions = inputs.positions[start:stop].tolist()
        kv_len = int(inputs.kv_lens[row])
        assert positions == list(range(kv_len - (stop - start), kv_len)), "wrong positions"
        targets = inputs.write_slots[start:stop].tolist()
        tokens = inputs.token_ids[start:stop].tolist()
        if inputs.bucket.mode is Mode.DECODE:
            tokens = [~int(inputs.row_slots[row])]
        tokens = [token if token >= 0 else self.last_tokens[~token] for token in tokens]
        value = int(self.kv[cells[positions[0] - 1]]) if positions[0] else 0
        for target, token in zip(targets, tokens, strict=True):
            assert target >= self.page_size, "a real token is written to the null page"
            value = next_kv(value, token, salt)
            self.kv[target] = value

    def _sample(self, inputs: StepInputs, row: int, cells: np.ndarray) -> int:
        slot, sampling = int(inputs.row_slots[row]), inputs.sampling
        state = self.slots[slot]
        total = int((self.kv[cells] * WEIGHTS[: len(cells)]).sum())
        is_penalised = bool(sampling.frequency_penalty[row])
        if is_penalised:
            total ^= mix(state.history)
        is_masked = inputs.kv_lens[row] < sampling.min_lens[row]
        high, low = sampling.seeds[row].tolist()
        forbidden = state.stop_ids if is_masked else frozenset()
        token = choose_token(total, (high << 32) | low, self.vocab_size, forbidden)
        if is_penalised:
            state.history += token
        self.last_tokens[slot] = token
        return token

    def _check_shapes(self, inputs: StepInputs) -> None:
        bucket, num_rows = inputs.bucket, inputs.bucket.num_rows
        assert bucket in self.buckets, "a shape that warm-up does not compile"
        for name in ("token_ids", "positions", "write_slots"):
            assert getattr(inputs, name).shape == (bucket.num_tokens,), name
        assert inputs.page_table.shape == (num_rows, bucket.pages_per_row)
        assert inputs.q_starts.shape == (num_rows + 1,)
        assert inputs.kv_lens.shape == inputs.row_slots.shape == (num_rows,)
        num_real = int(np.count_nonzero(inputs.kv_lens))
        num_tokens = int(inputs.q_starts[num_real])
        assert not inputs.write_slots[num_tokens:].any(), "padding is written outside page 0"
        assert not inputs.page_table[num_real:].any(), "a padding row reads real pages"
        assert not inputs.row_slots[num_real:].any(), "a padding row has a slot"
        assert not inputs.sampling.samples[num_real:].any(), "a padding row samples"


def undisturbed(
    request: Request, vocab_size: int, eos: int, script: Script
) -> tuple[list[int], str]:
    """Tokens and finish type of a request that is alone in the world."""
    sampling = request.sampling
    stop_ids = frozenset(sampling.stop_token_ids)
    stop_ids |= frozenset() if sampling.ignore_eos else frozenset([eos])
    maximum, salt = sampling.max_new_tokens or 0, salt_of(request)
    value, total, position = 0, 0, 0
    output: list[int] = []
    token_ids = list(request.prompt_ids)
    while len(output) < maximum:
        is_forced = len(output) in script
        if is_forced:
            new_ids = list(script[len(output)])
        else:
            for token in token_ids:
                value = next_kv(value, token, salt)
                total = (total + value * (2 * position + 1)) & MASK
                position += 1
            token_ids = []
            seen = total ^ mix(sum(output)) if sampling.frequency_penalty else total
            forbidden = stop_ids if len(output) < sampling.min_new_tokens else frozenset()
            new_ids = [choose_token(seen, sampling.seed or 0, vocab_size, forbidden)]
        for token in new_ids[: maximum - len(output)]:
            output.append(token)
            token_ids.append(token)
            if token in stop_ids and len(output) > sampling.min_new_tokens:
                return output, "stop"
    return output, "length"
