"""The kernel configurations that are compiled for inspection, and what each must move."""

import functools
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels import pallas
from pallas_kernels.aot_compile import Compiler, Report
from pallas_kernels.aot_report import Roofline
from pallas_kernels.support import DTYPES, HEAD_DIMS, KV_DTYPES, MAX_GROUP, PAGE_SIZES
from pallas_kernels.tuning import AttentionShape, Config, DecodeConfig, ExtendConfig, fits

ATTENTION_OPS = ("decode", "extend")
OPS = (*ATTENTION_OPS, "add_rms_norm")
GROUPS = tuple(group for group in (1, 2, 3, 4, 5, 7, 8, 16) if group <= MAX_GROUP)
GRIDS = ("suite", "shapes", "all")
SOFT_CAP = 30.0
WINDOW = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelCase:
    """One attention call.  ``config`` None is what ``tuning`` chooses."""

    op: str
    head_dim: int = 128
    page_size: int = 16
    dtype: str = "bfloat16"
    kv_dtype: str = ""  # "": dtype
    group: int = 4
    num_kv_heads: int = 8
    num_rows: int = 16
    num_tokens: int = 0  # 0: one per row in decode, 2048 in extend
    context: int = 2048
    soft_cap: float | None = None
    window: int | None = None
    config: Config | None = None
    uses_tensor_cores = True

    @property
    def num_heads(self) -> int:
        """Query heads."""
        return self.group * self.num_kv_heads

    @property
    def tokens(self) -> int:
        """Queries of all rows."""
        return self.num_tokens or (self.num_rows if self.op == "decode" else 2048)

    @property
    def pool_dtype(self) -> str:
        """What keys and values are stored as."""
        return self.kv_dtype or self.dtype

    @property
    def pages_per_row(self) -> int:
        """Columns of the page table."""
        return -(-self.context // self.page_size)

    @property
    def shape(self) -> AttentionShape:
        """What ``tuning`` looks at."""
        return AttentionShape(
            num_tokens=self.tokens,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            page_size=self.page_size,
            pages_per_row=self.pages_per_row,
            kv_dtype=self.pool_dtype,
        )

    @property
    def title(self) -> str:
        """``decode H=128 page=16 bfloat16 G=4 …``, for messages and test ids."""
        options = [f"kv={self.kv_dtype}"] if self.kv_dtype else []
        options += [f"cap={self.soft_cap:g}"] if self.soft_cap else []
        options += [f"window={self.window}"] if self.window else []
        options += [_config_text(self.config)] if self.config else []
        sizes = (
            f"H={self.head_dim} page={self.page_size} {self.dtype} G={self.group} "
            f"K={self.num_kv_heads}"
        )
        return " ".join([self.op, sizes, f"B={self.num_rows} T={self.tokens}", *options])

    @property
    def flops(self) -> int:
        """Of the two products, where the mask lets anything through (rows share the tokens)."""
        queries = self.tokens // self.num_rows
        before = max(0, self.context - queries)
        pairs = self.num_rows * (queries * before + queries * (queries + 1) // 2)
        if self.window:
            pairs = min(pairs, self.tokens * self.window)
        return 4 * self.num_heads * self.head_dim * pairs

    @property
    def num_bytes(self) -> int:
        """Keys and values once per row, queries and output once."""
        seen = min(self.context, self.window or self.context) if self.op == "decode" else None
        keys = self.num_rows * (seen or self.context) * self.num_kv_heads * self.head_dim
        queries = self.tokens * self.num_heads * self.head_dim
        return (
            2 * keys * jnp.dtype(self.pool_dtype).itemsize
            + 2 * queries * jnp.dtype(self.dtype).itemsize
        )

    def program(self, compiler: Compiler) -> tuple[Any, list[Any]]:
        """The jitted op and its arguments."""
        spec = compiler.spec
        pool = (self.num_rows * self.pages_per_row + 1, self.num_kv_heads, self.page_size)
        pages = spec((*pool, self.head_dim), jnp.dtype(self.pool_dtype))
        arguments = [
            spec((self.tokens, self.num_heads, self.head_dim), jnp.dtype(self.dtype)),
            pages,
            pages,
            spec((self.num_rows, self.pages_per_row), jnp.int32),
            spec((self.num_rows,), jnp.int32),
        ]
        function = pallas.paged_decode_attention
        if self.op == "extend":
            function = pallas.paged_extend_attention
            arguments.append(spec((self.num_rows + 1,), jnp.int32))
        static = {
            "scale": self.head_dim**-0.5,
            "logit_soft_cap": self.soft_cap,
            "sliding_window": self.window,
            "config": self.config,
        }
        if not self.kv_dtype:
            return jax.jit(functools.partial(function, **static)), arguments
        scale = spec((), jnp.float32)
        scaled = jax.jit(
            lambda *args: function(*args[:-2], k_scale=args[-2], v_scale=args[-1], **static)
        )
        return scaled, [*arguments, scale, scale]


@dataclass(frozen=True, slots=True, kw_only=True)
class NormCase:
    """One ``add_rms_norm``, of a residual stream of ``size`` and ``num_parts`` partial sums."""

    op: str = "add_rms_norm"
    size: int = 4096
    num_rows: int = 64
    num_parts: int = 1
    dtype: str = "bfloat16"
    uses_tensor_cores = False

    @property
    def title(self) -> str:
        """``add_rms_norm D=4096 …``."""
        return f"{self.op} D={self.size} T={self.num_rows} parts={self.num_parts} {self.dtype}"

    @property
    def flops(self) -> int:
        """No matrix products."""
        return 0

    @property
    def num_bytes(self) -> int:
        """The stream in and out, its norm, and what is added: f32 if in parts."""
        itemsize = jnp.dtype(self.dtype).itemsize
        added = itemsize if self.num_parts == 1 else 4 * self.num_parts
        return self.num_rows * self.size * (3 * itemsize + added)

    def program(self, compiler: Compiler) -> tuple[Any, list[Any]]:
        """The jitted op and its arguments."""
        dtype = jnp.dtype(self.dtype)
        x = compiler.spec((self.num_rows, self.size), dtype)
        parts = compiler.spec((self.num_parts, self.num_rows, self.size), jnp.float32)
        delta = x if self.num_parts == 1 else parts
        op = jax.jit(functools.partial(pallas.add_rms_norm, epsilon=1e-5))
        return op, [x, delta, compiler.spec((self.size,), dtype)]


Case = KernelCase | NormCase


@dataclass(frozen=True, slots=True)
class KernelReport:
    """One row of the table of kernels."""

    case: Case
    report: Report

    @property
    def problems(self) -> tuple[str, ...]:
        """Which laws the kernel breaks."""
        found = []
        if not self.report.mosaic or self.report.num_unread:
            found.append("a Mosaic kernel is missing, or left no dump to read")
        for kernel in self.report.mosaic:
            if kernel.spill_bytes:
                found.append(f"{kernel.name} spills {kernel.spill_bytes} bytes of registers")
            if not self.case.uses_tensor_cores:
                continue
            if not kernel.has_hgmma:
                found.append(f"{kernel.name} has no HGMMA: its products miss the tensor cores")
            if not kernel.has_utmaldg:
                found.append(f"{kernel.name} has no UTMALDG: its loads miss the copy engine")
        return tuple(found)

    def _has_all(self, facts: list[bool]) -> bool | None:
        """None where tensor cores and copy engine are not wanted."""
        return bool(facts) and all(facts) if self.case.uses_tensor_cores else None

    def row(self, roofline: Roofline) -> dict[str, Any]:
        """Figures by the name of their column."""
        kernels = self.report.mosaic
        case = self.case
        return {
            "kernel": case.title,
            "registers": max((kernel.registers for kernel in kernels), default=0),
            "spill_bytes": self.report.spill_bytes,
            "shared_bytes": max((kernel.shared_bytes for kernel in kernels), default=0),
            "threads": max((kernel.threads for kernel in kernels), default=0),
            "grid": "x".join(str(size) for kernel in kernels[:1] for size in kernel.grid),
            "hgmma": self._has_all([kernel.has_hgmma for kernel in kernels]),
            "utmaldg": self._has_all([kernel.has_utmaldg for kernel in kernels]),
            "launches": self.report.num_kernels,
            "temp_bytes": self.report.memory.temp,
            "bytes": case.num_bytes,
            "flops": case.flops,
            "roofline_s": roofline.seconds(case.num_bytes, case.flops),
            "ptxas": self.report.ptxas_version,
            "compile_s": round(self.report.compile_s, 2),
            "problems": list(self.problems),
        }


def compile_kernel(compiler: Compiler, case: Case, **options: Any) -> KernelReport:
    """Compile one case; ``options`` go to ``Compiler.compile``."""
    jitted, arguments = case.program(compiler)
    return KernelReport(case, compiler.compile(jitted, *arguments, name=case.title, **options))


def grid(name: str) -> tuple[Case, ...]:
    """The cases of one of ``GRIDS``.

    ``suite`` has every op, head dim and page size, and every other axis once; ``shapes`` every
    supported combination of head dim, page size, group and dtype, and each option of each head
    dim; ``all`` also every configuration that fits.
    """
    if name not in GRIDS:
        raise ValueError(f"--grid must be one of {', '.join(GRIDS)}; got {name!r}")
    makers = {"suite": _suite, "shapes": _shapes, "all": _all}
    return tuple(dict.fromkeys(makers[name]()))


def _suite() -> Iterator[Case]:
    for op, head_dim, page_size in itertools.product(ATTENTION_OPS, HEAD_DIMS, PAGE_SIZES):
        yield KernelCase(op=op, head_dim=head_dim, page_size=page_size)
    for op in ATTENTION_OPS:
        yield KernelCase(op=op, dtype="float16")
        yield KernelCase(op=op, soft_cap=SOFT_CAP, window=WINDOW)
        for group in (1, MAX_GROUP):
            yield KernelCase(op=op, group=group)
        for head_dim, kv_dtype in itertools.product(HEAD_DIMS, _other_kv_dtypes()):
            yield KernelCase(op=op, head_dim=head_dim, kv_dtype=kv_dtype)
    # one row of Qwen2.5-0.5B and of SmolLM2-135M: query heads that fill no tile of 8 rows
    for group, num_kv_heads in ((7, 2), (3, 3)):
        yield KernelCase(
            op="decode", head_dim=64, group=group, num_kv_heads=num_kv_heads, num_rows=1
        )
    yield from (NormCase(), NormCase(num_rows=1, num_parts=8), NormCase(size=896, dtype="float16"))


def _shapes() -> Iterator[Case]:
    for op, head_dim, page_size, group, dtype in itertools.product(
        ATTENTION_OPS, HEAD_DIMS, PAGE_SIZES, GROUPS, DTYPES
    ):
        yield KernelCase(
            op=op, head_dim=head_dim, page_size=page_size, group=group, dtype=dtype,
            num_kv_heads=2,
        )  # fmt: skip
    for op, head_dim in itertools.product(ATTENTION_OPS, HEAD_DIMS):
        case = KernelCase(op=op, head_dim=head_dim)
        yield replace(case, soft_cap=SOFT_CAP)
        yield replace(case, window=WINDOW)
        yield replace(case, soft_cap=SOFT_CAP, window=WINDOW)
        for kv_dtype in _other_kv_dtypes():
            yield replace(case, kv_dtype=kv_dtype, soft_cap=SOFT_CAP, window=WINDOW)
            for page_size, group, dtype in itertools.product(PAGE_SIZES, (1, 4, MAX_GROUP), DTYPES):
                yield replace(
                    case, page_size=page_size, group=group, dtype=dtype, kv_dtype=kv_dtype
                )
    for num_rows in (1, 3, 64, 256):
        yield KernelCase(op="decode", num_rows=num_rows)
        yield KernelCase(op="decode", num_rows=num_rows, head_dim=64, group=7, num_kv_heads=2)
    for size, num_parts, dtype in itertools.product((896, 3584, 4096, 8192), (1, 4, 8), DTYPES):
        yield NormCase(size=size, num_parts=num_parts, dtype=dtype)


def _all() -> Iterator[Case]:
    yield from _shapes()
    for op, head_dim, page_size, dtype in itertools.product(
        ATTENTION_OPS, HEAD_DIMS, PAGE_SIZES, DTYPES
    ):
        for group in (1, 4, MAX_GROUP):
            case = KernelCase(
                op=op, head_dim=head_dim, page_size=page_size, dtype=dtype, group=group
            )
            yield from (replace(case, config=config) for config in configs(case))
    for op, head_dim, dtype, kv_dtype in itertools.product(
        ATTENTION_OPS, HEAD_DIMS, DTYPES, _other_kv_dtypes()
    ):
        case = KernelCase(op=op, head_dim=head_dim, dtype=dtype, kv_dtype=kv_dtype)
        yield from (replace(case, config=config) for config in configs(case))


def configs(case: KernelCase) -> Iterator[Config]:
    """Every configuration that finds its shared memory."""
    for block_kv, num_stages in itertools.product((64, 128), (2, 3, 4)):
        tiles: dict[str, int] = {"block_kv": block_kv, "num_stages": num_stages}
        candidates: Iterable[Config] = (ExtendConfig(**tiles),)
        if case.op == "decode":
            candidates = (DecodeConfig(num_splits=splits, **tiles) for splits in (1, 4))
        yield from (config for config in candidates if fits(config, case.shape))


def _other_kv_dtypes() -> tuple[str, ...]:
    """Those that q does not have itself: with scales."""
    return tuple(name for name in KV_DTYPES if name not in DTYPES)


def _config_text(config: Config) -> str:
    return "/".join(f"{name}={value}" for name, value in asdict(config).items())
