"""What the blocks of extend attention work on: tiles of queries, and the keys that those see.

A tile is up to 128 queries of one row, 64 for each of two warpgroups.  Which row a tile belongs to
is computed by a few small XLA ops (``tile_table``), the same for every layer, so that a step does
it once.  Positions are within a row: a query at position x sees the keys at positions
(x - window, x].
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.hopper import MMA_ROWS, TILE_LINES, Warpgroup, ceil_div, round_up
from pallas_kernels.layout import KVLayout
from pallas_kernels.tuning import ExtendConfig

CONSUMERS = 2  # warpgroups that compute
QUERY_TILE = CONSUMERS * MMA_ROWS


@dataclass(frozen=True, slots=True)
class ExtendPlan:
    """All that is static in one call.

    ``waits_for_data`` and ``frees_early`` are seams of the tests: where a product does not wait
    for its tile, or gives it back before it has read it, the race detector must speak up.
    """

    num_tokens: int
    num_heads: int
    layout: KVLayout
    dtype: jnp.dtype
    scale: float
    logit_soft_cap: float | None
    sliding_window: int | None
    config: ExtendConfig
    warpgroup: Warpgroup
    is_fp8: bool = False  # the pools hold e4m3, with scales or without
    waits_for_data: bool = True
    frees_early: bool = False

    @property
    def padded_tokens(self) -> int:
        """Rows that q and the output have in the kernel.

        It takes 64 rows wherever a row of the batch begins, and TMA takes rows in eights.  A
        server's steps have such sizes; any other costs a copy.
        """
        return max(MMA_ROWS, round_up(self.num_tokens, TILE_LINES))

    @property
    def group(self) -> int:
        """Query heads per kv head."""
        return self.num_heads // self.layout.num_kv_heads

    @property
    def pages_per_tile(self) -> int:
        """Pages whose keys make one tile."""
        return self.config.block_kv // self.layout.page_size

    @property
    def arrivals_per_tile(self) -> int:
        """What says that a tile is here: each page's copy, or the copier that has widened it."""
        return 1 if self.is_fp8 else self.pages_per_tile

    @property
    def copier_registers(self) -> int:
        """Of a thread that copies: more where it also widens.

        A block of 384 is launched with 168 for each thread, and may share those out anew: 504
        for one of each warpgroup.
        """
        return 56 if self.is_fp8 else 40

    @property
    def consumer_registers(self) -> int:
        """Of a thread that computes: what the copier leaves."""
        return (504 - self.copier_registers) // CONSUMERS

    @property
    def overlaps(self) -> bool:
        """Whether a warpgroup computes the next scores beside its softmax.

        At head dim 256 the output leaves no registers for them, and no need: the products take
        more than twice the time of the softmax, which the other warpgroup's fill.
        """
        return self.layout.head_dim <= 128

    def slot(self, step: jax.Array) -> jax.Array:
        """Where in the ring the tile of a step lies."""
        stages = self.config.num_stages
        if stages & (stages - 1) == 0:
            return step & (stages - 1)  # fewer registers than the remainder of a signed number
        return lax.rem(step, jnp.int32(stages))


def tile_table(q_starts: jax.Array, kv_lens: jax.Array, num_tokens: int) -> jax.Array:
    """Which queries each tile holds, those with the most keys first.

    A row's tiles begin at its first token rounded down to a multiple of 8, as TMA wants it, and
    every 128 tokens from there; what of the first tile is not the row's is left out.  The tokens
    behind the last row are one more row, without keys.  Blocks start in the order of the table:
    with the short ones last, all SMs finish at about the same time.

    Before it is ordered, row b's tiles stand from ``q_starts[b] // 128 + b`` on.  That leaves
    gaps, but no two rows meet, as floor(x) + ceil(y) <= floor(x + y) + 1, and nothing needs to
    be summed up.  Comparisons and sums throughout: XLA fuses those, but not a sort or a search.

    Args:
        q_starts: ``i32[B + 1]``.
        kv_lens: ``i32[B]``.
        num_tokens: T.

    Returns:
        ``i32[T // 128 + B + 1, 4]``: row, first token, number of tokens (0: no tile), position of
        the first token.
    """
    num_rows = kv_lens.shape[0]
    rows = jnp.arange(num_rows + 1, dtype=jnp.int32)
    ends = jnp.concatenate([q_starts[1:], jnp.full((1,), num_tokens, jnp.int32)])
    before = jnp.concatenate([kv_lens, jnp.zeros((1,), jnp.int32)]) - ends  # of token 0
    places = q_starts // QUERY_TILE + rows  # [B + 1], rising

    index = jnp.arange(num_tokens // QUERY_TILE + num_rows + 1, dtype=jnp.int32)
    row = jnp.sum(places[None] <= index[:, None], axis=1, dtype=jnp.int32) - 1
    first = _round_down(q_starts[row]) + (index - places[row]) * QUERY_TILE
    start = jnp.maximum(first, q_starts[row])
    count = jnp.maximum(jnp.minimum(first + QUERY_TILE, ends[row]) - start, 0)
    position = before[row] + start
    table = jnp.stack([jnp.minimum(row, num_rows - 1), start, count, position])  # [4, num_tiles]

    num_keys = jnp.where(count > 0, jnp.maximum(position + count, 0), -1)
    is_before = (num_keys[None] > num_keys[:, None]) | (
        (num_keys[None] == num_keys[:, None]) & (index[None] < index[:, None])
    )
    place = jnp.sum(is_before, axis=1, dtype=jnp.int32)
    is_here = place[None] == index[:, None]
    return jnp.sum(jnp.where(is_here[:, None], table[None], 0), axis=2, dtype=jnp.int32)


@dataclass(frozen=True, slots=True)
class Block:
    """What one block works on: a tile of queries of one head, and the tiles of keys it needs.

    Positions are within the row.  Step i of a block is tile ``first_tile + i`` of the row's keys.
    """

    head: jax.Array
    row: jax.Array
    start: jax.Array  # first token
    count: jax.Array  # tokens, at most QUERY_TILE
    position: jax.Array  # of the first token
    first_tile: jax.Array
    num_steps: jax.Array

    @classmethod
    def of(cls, plan: ExtendPlan, tiles: jax.Array) -> "Block":
        """The running block's line of the table."""
        tile, block_kv = lax.axis_index("tile"), plan.config.block_kv
        row, start, count, position = (tiles[tile, column] for column in range(4))
        first_tile = _first_visible(plan, position)
        num_tiles = ceil_div(jnp.maximum(position + count, 0), block_kv)
        num_steps = jnp.maximum(num_tiles - first_tile, 0)
        return cls(lax.axis_index("head"), row, start, count, position, first_tile, num_steps)

    @property
    def end(self) -> jax.Array:
        """One past the last position."""
        return self.position + self.count


@dataclass(frozen=True, slots=True)
class Rows:
    """One warpgroup's 64 rows of a block, of which ``[low, high)`` are its queries.

    The rows begin at a multiple of 8 tokens, and at the end of the tokens they are moved back to
    end there.  Those that are others' then are computed and not stored.  The steps
    ``[begin, end)`` have keys that a query sees, and those of ``[whole_begin, whole_end)`` are
    seen by all of them.
    """

    token: jax.Array  # of row 0
    low: jax.Array
    high: jax.Array
    position: jax.Array  # of row 0
    begin: jax.Array
    end: jax.Array
    whole_begin: jax.Array
    whole_end: jax.Array

    @classmethod
    def of(cls, plan: ExtendPlan, block: Block, warpgroup: jax.Array) -> "Rows":
        """The rows of one of the consumers."""
        block_kv, window = plan.config.block_kv, plan.sliding_window
        first = _round_down(block.start) + warpgroup * MMA_ROWS
        token = jnp.minimum(first, plan.padded_tokens - MMA_ROWS)
        own_begin = jnp.maximum(first, block.start)
        own_end = jnp.minimum(first + MMA_ROWS, block.start + block.count)
        low = own_begin - token
        high = jnp.maximum(own_end - token, low)
        nearest = block.position + own_begin - block.start
        farthest = block.position + own_end - block.start - 1
        begin = _first_visible(plan, nearest) - block.first_tile
        end = ceil_div(jnp.maximum(farthest + 1, 0), block_kv) - block.first_tile
        begin = jnp.minimum(begin, block.num_steps)
        end = jnp.where(low < high, jnp.maximum(end, begin), begin)
        whole_begin = begin
        if window is not None:
            seen_by_all = ceil_div(jnp.maximum(farthest + 1 - window, 0), block_kv)
            whole_begin = jnp.clip(seen_by_all - block.first_tile, begin, end)
        whole_end = lax.div(jnp.maximum(nearest + 1, 0), jnp.int32(block_kv)) - block.first_tile
        whole_end = jnp.clip(whole_end, whole_begin, end)
        position = block.position + token - block.start
        return cls(token, low, high, position, begin, end, whole_begin, whole_end)


def _round_down(token: jax.Array) -> jax.Array:
    """The first token of a tile's lines: TMA would cut off what begins within them."""
    return token & -TILE_LINES


def _first_visible(plan: ExtendPlan, position: jax.Array) -> jax.Array:
    """Tile of the first key that a query at ``position`` sees."""
    if plan.sliding_window is None:
        return jnp.int32(0)
    first_key = jnp.maximum(position + 1 - plan.sliding_window, 0)
    return lax.div(first_key, jnp.int32(plan.config.block_kv))
