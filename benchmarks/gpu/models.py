"""The models that whole steps are checked and timed with, and one runner for all of them.

Sizes are fixed here once: two processes of a run that ask for the same steps then find each
other's compiled programs in the run's compilation cache.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from bench_step import neutral_sampling
from make_tiny_checkpoint import make_tiny_llama
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from gpu.environment import REPO
from jaxserve.batch import Bucket, StepInputs
from jaxserve.config import EngineConfig, resolve
from jaxserve.executor import ModelRunner, build_runner, device_info, enable_compilation_cache
from jaxserve.model_config import ModelConfig
from jaxserve.scheduler import Buckets, make_buckets
from jaxserve.weights import resolve_source

PUBLISHED_8B = REPO / "jaxserve" / "published" / "llama-3.1-8b.json"
# The sizes of ``tiny_llama``, so that a dry run compiles its steps once.
TINY_8B = {
    "hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8,
    "num_key_value_heads": 2, "num_hidden_layers": 2, "vocab_size": 259, "head_dim": 64,
    "max_position_embeddings": 512, "rope_scaling": None, "rope_theta": 10_000.0,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Setup:
    """A model's folder and the sizes that it is served with."""

    folder: Path
    load_format: str
    context_length: int
    max_total_tokens: int
    max_rows: int
    decode_rows: tuple[int, ...]  # of buckets smaller than max_rows
    extend_tokens: tuple[int, ...]  # the last is the chunk size
    prefill_rows: int
    page_size: int = 16
    dtype: str = "bfloat16"

    def config(self, backend: str) -> EngineConfig:
        return EngineConfig(
            model_path=str(self.folder),
            load_format=self.load_format,
            dtype=self.dtype,
            page_size=self.page_size,
            context_length=self.context_length,
            max_total_tokens=self.max_total_tokens,
            max_running_requests=self.max_rows,
            chunked_prefill_size=self.extend_tokens[-1],
            prefill_max_requests=self.prefill_rows,
            precompile_token_paddings=self.extend_tokens,
            precompile_bs_paddings=self.decode_rows,
            attention_backend=backend,
            compilation_cache_dir=compilation_cache(),
            random_seed=0,
        )

    @property
    def buckets(self) -> Buckets:
        """As the engine makes them of ``config``."""
        return make_buckets(
            chunked_prefill_size=self.extend_tokens[-1],
            max_running_requests=self.max_rows,
            prefill_max_requests=self.prefill_rows,
            max_pages_per_row=-(-self.context_length // self.page_size),
            extend_tokens=self.extend_tokens,
            decode_rows=self.decode_rows,
        )

    @property
    def model_config(self) -> ModelConfig:
        return ModelConfig.from_hf(json.loads((self.folder / "config.json").read_text("utf-8")))


def llama_8b(scratch: Path, is_tiny: bool) -> Setup:
    """Llama-3.1-8B with made-up weights; in a dry run the same at a thousandth of its size."""
    folder = scratch / ("llama-tiny" if is_tiny else "llama-8b")
    write_model(folder, TINY_8B if is_tiny else {})
    if is_tiny:
        return Setup(folder, "dummy", 256, 4096, 4, (), (128,), 4)
    # One prompt of 8192 tokens and room for an answer; 32 GiB of keys and values.
    return Setup(folder, "dummy", 8208, 2**18, 256, (1, 64, 128), (1024, 8192), 64)


def two_layers(scratch: Path) -> Setup:
    """Two layers of it, small enough to run with every backend."""
    folder = scratch / "two-layers"
    write_model(folder, {"num_hidden_layers": 2})
    return Setup(folder, "dummy", 512, 4096, 4, (), (128,), 4)


def tiny_llama(scratch: Path, *, name: str = "tiny", page_size: int = 16) -> Setup:
    """A random Llama whose greedy choices are clear: two layers, G = 4, H = 64."""
    folder = scratch / name
    if not (folder / "config.json").exists():
        make_tiny_llama(
            folder, tokenizer="bytes", dtype="bfloat16", hidden_size=256, head_dim=64,
            num_attention_heads=8, num_key_value_heads=2, intermediate_size=512,
        )  # fmt: skip
    return Setup(folder, "safetensors", 256, 4096, 4, (), (128,), 4, page_size=page_size)


def write_model(folder: Path, overrides: Mapping[str, object]) -> None:
    """A folder with the published config, changed by ``overrides``, and a tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads(PUBLISHED_8B.read_text("utf-8")) | dict(overrides)
    ends = {"bos_token_id": config["vocab_size"] - 2, "eos_token_id": config["vocab_size"] - 1}
    (folder / "config.json").write_text(json.dumps(config | ends), "utf-8")
    path = folder / "tokenizer.json"
    if not path.exists():
        word_tokenizer(config["vocab_size"]).save(str(path))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")


def word_tokenizer(vocab_size: int) -> Tokenizer:
    """A tokenizer of ``vocab_size`` made-up words: to decode its ids costs what real ones cost."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*alphabet, *(f"Ġw{index:x}" for index in range(vocab_size - len(alphabet)))]
    vocab = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def compilation_cache() -> str:
    """The folder that all processes of a run share."""
    return os.environ["JAX_COMPILATION_CACHE_DIR"]


def build(setup: Setup, backend: str, buckets: Sequence[Bucket]) -> ModelRunner:
    """A runner with one program per bucket."""
    enable_compilation_cache(compilation_cache())
    device = device_info()
    config = resolve(setup.config(backend), setup.model_config, device)
    source = resolve_source(str(setup.folder), load_format=setup.load_format)
    return build_runner(
        config,
        setup.model_config,
        source,
        device,
        num_pages=setup.max_total_tokens // setup.page_size + 1,
        buckets=tuple(buckets),
    )


def step_inputs(
    bucket: Bucket,
    rows: Sequence[tuple[int, int]],
    setup: Setup,
    *,
    pages_apart: int,
    rng: np.random.Generator,
    wants_logprobs: bool = False,
) -> StepInputs:
    """A step of rows (tokens before, tokens now); row r owns the pages from r * pages_apart + 1."""
    page_size = setup.page_size
    table = np.zeros((bucket.num_rows, bucket.pages_per_row), np.int32)
    positions = np.zeros(bucket.num_tokens, np.int32)
    write_slots = np.zeros(bucket.num_tokens, np.int32)
    starts = np.zeros(bucket.num_rows + 1, np.int32)
    kv_lens = np.zeros(bucket.num_rows, np.int32)
    start = 0
    for row, (before, new) in enumerate(rows):
        kv_lens[row] = before + new
        count = -(-int(kv_lens[row]) // page_size)
        table[row, :count] = 1 + row * pages_apart + np.arange(count)
        mine = np.arange(before, before + new, dtype=np.int32)
        positions[start : start + new] = mine
        slots = table[row, mine // page_size] * page_size + mine % page_size
        write_slots[start : start + new] = slots
        start += new
        starts[row + 1 :] = start
    sampling = neutral_sampling(bucket.num_rows, len(rows))
    wants = np.full(bucket.num_rows, wants_logprobs)
    row_slots = np.arange(1, bucket.num_rows + 1) * (np.arange(bucket.num_rows) < len(rows))
    # Plain ids of the smallest vocabulary; special ones come last.
    token_ids = rng.integers(0, 256, bucket.num_tokens)
    return StepInputs(
        bucket=bucket,
        token_ids=token_ids.astype(np.int32),
        positions=positions,
        write_slots=write_slots,
        page_table=table,
        kv_lens=kv_lens,
        q_starts=starts,
        row_slots=row_slots.astype(np.int32),
        sampling=replace(sampling, wants_logprobs=wants),
    )
