"""Which configuration a kernel runs with: measured data first, a heuristic behind it.

``tuned/<device>.json`` holds what ``scripts/tune_kernels.py`` measured on that device.  A shape
that is not in it, or a device without a file, gets the heuristic below, which is reasoning and
not measurement.  Everything here is static: shapes in, a frozen dataclass out.
"""

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import jax

from pallas_kernels.layout import KVLayout

TUNED = Path(__file__).parent / "tuned"
TARGET_DEVICE = "nvidia_h100"  # what is compiled for when this process has no GPU

# H100 SXM and H200 (https://docs.nvidia.com/cuda/hopper-tuning-guide/)
NUM_SMS = 132
SMEM_PER_BLOCK = 227 * 1024
SMEM_PER_SM = 228 * 1024
SMEM_RESERVED = 1024  # the system's share of every block
BARRIER_BYTES = 8

MMA_ROWS = 64  # rows of one wgmma
WIDE_ITEMSIZE = 2  # bytes of an element that wgmma multiplies
MAX_SPLITS = 32
# In units of the time that one tile of keys and values takes: to start a block and fill its
# pipeline (page ids, then the first tile), and to launch the combination of partial results.
START_COST = 2
COMBINE_COST = 2


@dataclass(frozen=True, slots=True)
class DecodeConfig:
    """How ``paged_decode_attention`` runs.

    Attributes:
        num_splits: blocks that share one row's keys, >= 1; 1 needs no combination.
        block_kv: tokens of keys and values per tile, 64 or 128.
        num_stages: tiles in flight, >= 2.
    """

    num_splits: int
    block_kv: int = 64
    num_stages: int = 3

    def __post_init__(self) -> None:
        _check_field("num_splits", self.num_splits, 1, 128)
        _check_tiles(self.block_kv, self.num_stages)


@dataclass(frozen=True, slots=True)
class ExtendConfig:
    """How ``paged_extend_attention`` runs.

    Attributes:
        block_q: query rows per consumer warpgroup (there are two); the 64 of one wgmma.
        block_kv: tokens of keys and values per tile, 64 or 128.
        num_stages: tiles in flight, >= 2.
    """

    block_q: int = MMA_ROWS
    block_kv: int = 128
    num_stages: int = 2

    def __post_init__(self) -> None:
        _check_field("block_q", self.block_q, MMA_ROWS, MMA_ROWS)
        _check_tiles(self.block_kv, self.num_stages)


Config = DecodeConfig | ExtendConfig


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """What of an attention call is static and decides how it should run."""

    num_tokens: int  # T; of decode one per row: B
    num_heads: int
    num_kv_heads: int
    head_dim: int
    page_size: int
    pages_per_row: int
    kv_dtype: str  # of the pools: "bfloat16", "float16", "float8_e4m3fn"

    @classmethod
    def of(cls, q: jax.Array, k_pages: jax.Array, page_table: jax.Array) -> "AttentionShape":
        """From ``q [T, N, H]``, a pool ``[P, K, page_size, H]`` and ``page_table [B, W]``."""
        layout = KVLayout.of(k_pages)
        return cls(
            num_tokens=q.shape[0],
            num_heads=q.shape[1],
            num_kv_heads=layout.num_kv_heads,
            head_dim=layout.head_dim,
            page_size=layout.page_size,
            pages_per_row=page_table.shape[1],
            kv_dtype=str(k_pages.dtype),
        )

    @property
    def group(self) -> int:
        """Query heads per kv head."""
        return self.num_heads // self.num_kv_heads

    @property
    def context(self) -> int:
        """Tokens that a row of the page table can hold."""
        return self.pages_per_row * self.page_size

    @property
    def kv_itemsize(self) -> int:
        """Bytes of one element of the pools."""
        return jax.numpy.dtype(self.kv_dtype).itemsize

    @property
    def is_fp8(self) -> bool:
        """Whether tiles must be widened before they are multiplied."""
        return self.kv_itemsize == 1


def decode_config(
    shape: AttentionShape, device: str | None = None, folder: Path = TUNED
) -> DecodeConfig:
    """The configuration of ``paged_decode_attention``: tuned if there is one, else reasoned.

    Args:
        shape: of the call; ``num_tokens`` is the number of rows.
        device: name of ``<device>.json``; None for this process's GPU, or H100 without one.
        folder: where that file is, if there is one.

    Raises:
        ValueError: the tuned file is not what ``load_tuned`` accepts.
    """
    tuned = load_tuned(device or device_name(), folder).get(TuningKey.of_decode(shape))
    return tuned if isinstance(tuned, DecodeConfig) else reasoned_decode_config(shape)


def extend_config(
    shape: AttentionShape, device: str | None = None, folder: Path = TUNED
) -> ExtendConfig:
    """The configuration of ``paged_extend_attention``; see ``decode_config``."""
    tuned = load_tuned(device or device_name(), folder).get(TuningKey.of_extend(shape))
    return tuned if isinstance(tuned, ExtendConfig) else reasoned_extend_config(shape)


def reasoned_decode_config(shape: AttentionShape) -> DecodeConfig:
    """Splits that fill the chip, stages that leave room for a second block on each SM.

    Decode is bound by the bytes of keys and values, so what counts is that every SM always has
    loads in flight.  Unsplit there is one block per (row, kv head).  Time is taken as waves of
    blocks times the tiles of one block, plus what each block and the combination cost; the
    fewest splits with the least of it win.  Rows are taken as half as long as the table allows:
    their lengths are not known while tracing.
    """
    for stages in (4, 3, 2):
        config = DecodeConfig(num_splits=1, block_kv=64, num_stages=stages)
        if _blocks_per_sm(smem_bytes(config, shape)) >= 2:
            break  # at head dim 256 no number does: one block, with two of 64 KB (fp8: 32 KB)
    at_once = NUM_SMS * max(1, _blocks_per_sm(smem_bytes(config, shape)))
    tiles = max(1, -(-shape.context // (2 * config.block_kv)))
    blocks = shape.num_tokens * shape.num_kv_heads

    def cost(splits: int) -> int:
        waves = -(-blocks * splits // at_once)
        each = -(-tiles // splits) + START_COST
        return waves * each + (COMBINE_COST if splits > 1 else 0)

    num_splits = min(range(1, min(tiles, MAX_SPLITS) + 1), key=cost)
    return DecodeConfig(num_splits, config.block_kv, config.num_stages)


def reasoned_extend_config(shape: AttentionShape) -> ExtendConfig:
    """128 keys a tile where the accumulators of scores and output fit in registers together.

    Extend is bound by the tensor cores: larger tiles mean fewer softmax rounds per product.  A
    consumer thread holds block_kv / 2 registers of scores, half of that of weights and H / 2 of
    output out of its 232: 128 keys fit up to H = 128, at H = 256 there is room for 64.  One
    block fills an SM whatever its stages, so it takes what shared memory there is, up to four.
    """
    block_kv = 128 if shape.head_dim <= 128 else 64
    candidates = (ExtendConfig(block_kv=block_kv, num_stages=stages) for stages in (4, 3, 2))
    return next(config for config in candidates if fits(config, shape))


def smem_bytes(config: Config, shape: AttentionShape) -> int:
    """Shared memory of one block: queries (reused for the output), K and V tiles, barriers.

    Of fp8 pools decode keeps a ring of tiles as they are stored and one of each widened to 16
    bits, extend one of each as stored and a ring of wide ones.
    Within 64 bytes above what the compiler reports: a handful of barriers, four per stage.
    """
    is_decode = isinstance(config, DecodeConfig)
    queries = (1 if is_decode else 2) * MMA_ROWS * shape.head_dim * WIDE_ITEMSIZE
    tile = config.block_kv * shape.head_dim
    ring, single = (shape.kv_itemsize, WIDE_ITEMSIZE)
    if not is_decode:
        ring, single = single, ring
    tiles = tile * config.num_stages * ring + (tile * single if shape.is_fp8 else 0)
    barriers = BARRIER_BYTES * (4 + 4 * config.num_stages)
    return queries + 2 * tiles + barriers


def fits(config: Config, shape: AttentionShape) -> bool:
    """Whether one block finds the shared memory it needs."""
    return smem_bytes(config, shape) <= SMEM_PER_BLOCK


def _blocks_per_sm(block_bytes: int) -> int:
    return SMEM_PER_SM // (block_bytes + SMEM_RESERVED)


@dataclass(frozen=True, slots=True)
class TuningKey:
    """Which calls share a configuration.

    ``width`` and ``context`` are the size class: blocks before splitting (rows times kv heads)
    for decode, tokens for extend; and the tokens a row may have.  Both are rounded up to a power
    of two, so that one measurement serves the sizes below it.
    """

    op: str
    head_dim: int
    group: int
    page_size: int
    dtype: str
    width: int
    context: int

    @classmethod
    def of_decode(cls, shape: AttentionShape) -> "TuningKey":
        """The key of a decode call."""
        return cls._of("decode", shape, shape.num_tokens * shape.num_kv_heads)

    @classmethod
    def of_extend(cls, shape: AttentionShape) -> "TuningKey":
        """The key of an extend call."""
        return cls._of("extend", shape, shape.num_tokens)

    @classmethod
    def _of(cls, op: str, shape: AttentionShape, width: int) -> "TuningKey":
        return cls(
            op=op,
            head_dim=shape.head_dim,
            group=shape.group,
            page_size=shape.page_size,
            dtype=shape.kv_dtype,
            width=_power_of_two(width),
            context=_power_of_two(shape.context),
        )


def device_name() -> str:
    """Name of this process's GPU as the tuned files spell it; the H100 if there is no GPU."""
    if jax.default_backend() != "gpu":
        return TARGET_DEVICE
    return normalised(jax.devices()[0].device_kind)


def normalised(device_kind: str) -> str:
    """``NVIDIA H100 80GB HBM3`` -> ``nvidia_h100``; PCIe and NVL cards keep that in the name."""
    words = re.split(r"[^a-z0-9]+", device_kind.lower())
    return "_".join(w for w in words if w and not re.fullmatch(r"\d+gb|hbm\w*|sxm\d*", w))


CONFIG_OF_OP = {"decode": DecodeConfig, "extend": ExtendConfig}
_ABOUT = ("device", "jax", "date", "commit")


@functools.cache
def load_tuned(device: str, folder: Path = TUNED) -> Mapping[TuningKey, Config]:
    """What was measured on ``device``; empty if nothing was.

    Raises:
        ValueError: the file is no valid JSON, a field is missing, unknown or of a wrong type, or
            two entries have one key.  The message names the file and the entry.
    """
    path = folder / f"{device}.json"
    if not path.is_file():
        return {}
    try:
        return parse_tuned(json.loads(path.read_text(encoding="utf-8")), device)
    except ValueError as error:  # JSONDecodeError is one
        raise ValueError(
            f"{path}: {error}; make it again with scripts/tune_kernels.py or remove it"
        ) from error


def parse_tuned(data: object, device: str) -> dict[TuningKey, Config]:
    """The configurations in the decoded JSON of a tuned file."""
    _check_keys("the file", data, (*_ABOUT, "entries"))
    for name in _ABOUT:
        if not isinstance(data[name], str):
            raise ValueError(f"{name} must be a string; got {data[name]!r}")
    if data["device"] != device:
        raise ValueError(f"device must be {device!r}, as the file is named; got {data['device']!r}")
    if not isinstance(data["entries"], list):
        raise ValueError(f"entries must be a list; got {data['entries']!r}")
    configs: dict[TuningKey, Config] = {}
    for index, entry in enumerate(data["entries"]):
        try:
            key, config = _parse_entry(entry)
        except ValueError as error:
            raise ValueError(f"entries[{index}]: {error}") from error
        if key in configs:
            raise ValueError(f"entries[{index}]: the key of an earlier entry; keep one of them")
        configs[key] = config
    return configs


def _parse_entry(entry: object) -> tuple[TuningKey, Config]:
    _check_keys("the entry", entry, ("key", "config", "measured"))
    key_values, values, measured = entry["key"], entry["config"], entry["measured"]
    _check_keys("key", key_values, tuple(f.name for f in fields(TuningKey)))
    for name, value in key_values.items():
        _check_type(f"key.{name}", value, str if name in ("op", "dtype") else int)
    op = key_values["op"]
    if op not in CONFIG_OF_OP:
        raise ValueError(f"key.op must be one of {', '.join(CONFIG_OF_OP)}; got {op!r}")
    kind = CONFIG_OF_OP[op]
    _check_keys("config", values, tuple(f.name for f in fields(kind)))
    for name, value in values.items():
        _check_type(f"config.{name}", value, int)
    if not isinstance(measured, dict):
        raise ValueError(f"measured must be an object of figures; got {measured!r}")
    return TuningKey(**key_values), kind(**values)


def _check_keys(what: str, data: object, names: tuple[str, ...]) -> None:
    if not isinstance(data, dict) or set(data) != set(names):
        given = ", ".join(sorted(data)) if isinstance(data, dict) else repr(data)
        raise ValueError(f"{what} must have exactly the fields {', '.join(names)}; got {given}")


def _check_type(name: str, value: object, kind: type) -> None:
    if type(value) is not kind:  # a bool is an int to isinstance
        raise ValueError(f"{name} must be of type {kind.__name__}; got {value!r}")


def _check_field(name: str, value: int, lowest: int, highest: int) -> None:
    if not lowest <= value <= highest:
        allowed = str(lowest) if lowest == highest else f"in [{lowest}, {highest}]"
        raise ValueError(f"{name} must be {allowed}; got {value}")


def _check_tiles(block_kv: int, num_stages: int) -> None:
    if block_kv not in (64, 128):
        raise ValueError(f"block_kv must be 64 or 128; got {block_kv}")
    _check_field("num_stages", num_stages, 2, 8)


def _power_of_two(value: int) -> int:
    """The least power of two that is not below ``value``."""
    return 1 << max(0, value - 1).bit_length()
