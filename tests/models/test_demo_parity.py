"""The demo model in f32 against transformers: logits, and 64 greedy tokens of 20 prompts."""

from pathlib import Path

import numpy as np
import pytest
import torch
from engine_harness import running_engine
from make_tiny_checkpoint import tensor_shapes
from model_harness import LoadedModel, load, prompt_logits
from transformers import LlamaConfig, LlamaForCausalLM

from jaxserve.request import SamplingParams
from jaxserve.text import load_tokenizer
from jaxserve.weights import resolve_source
from jaxserve.weights.gguf import GGUFReader

PROMPTS = (
    "The capital of France is", "Once upon a time", "def fibonacci(n):", "Water boils at",
    "The three primary colours are", "In 1969, humans", "A haiku about rain:\n", "1, 2, 3, 4,",
    "The opposite of hot is", "Dear Sir or Madam,", "To bake bread you need", "E = mc^2 means",
    "The largest planet is", "SELECT name FROM", "Photosynthesis is", "Die Hauptstadt von",
    "My favourite book is", "The quick brown fox", "Q: What is 2 + 2?\nA:", "import numpy as",
)  # fmt: skip
NUM_NEW = 64


@pytest.fixture(scope="module")
def theirs(demo_model: Path) -> LlamaForCausalLM:
    """transformers' model over the same numbers, read by name from the file."""
    config = dict(resolve_source(str(demo_model)).hf_config)
    reader = GGUFReader(demo_model)
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**config))
    tensors = {name: torch.tensor(np.asarray(reader.read(name))) for name in tensor_shapes(config)}
    model.load_state_dict(tensors, assign=True, strict=False)
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(config=model.config)
    return model.eval()


@pytest.fixture(scope="module")
def ours(demo_model: Path) -> LoadedModel:
    return load(demo_model)


def test_logits(theirs: LlamaForCausalLM, ours: LoadedModel, demo_model: Path) -> None:
    tokenizer = load_tokenizer(demo_model)
    ids = tokenizer.encode(" ".join(PROMPTS))
    assert len(ids) > 100
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits[0].numpy()
    difference = np.abs(prompt_logits(ours, ids) - expected).max()
    print(f"demo model, {len(ids)} positions: max |logit difference| {difference:.2e}")
    assert difference <= 1e-3


def test_greedy_tokens(
    theirs: LlamaForCausalLM, demo_model: Path, compilation_cache_dir: str
) -> None:
    tokenizer = load_tokenizer(demo_model)
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    sampling = SamplingParams(max_new_tokens=NUM_NEW, temperature=0.0, ignore_eos=True, seed=0)
    with running_engine(
        demo_model,
        compilation_cache_dir,
        max_running_requests=20,
        max_total_tokens=4096,
    ) as harness:
        outputs = harness.run(prompts, sampling)
    for prompt, output in zip(prompts, outputs, strict=True):
        assert len(output.tokens) == NUM_NEW
        assert output.tokens == their_choices(theirs, prompt, output.tokens), prompt


def their_choices(model: LlamaForCausalLM, prompt: list[int], tokens: list[int]) -> list[int]:
    """The most likely token after the prompt and each of ``tokens`` but the last.

    Equal to ``tokens`` exactly when a greedy generation is, by induction; one forward pass
    instead of one a token.
    """
    with torch.no_grad():
        logits = model(torch.tensor([prompt + tokens[:-1]])).logits[0]
    return logits[len(prompt) - 1 :].argmax(dim=-1).tolist()
