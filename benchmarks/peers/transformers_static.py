"""Output tokens per second of transformers' own ``generate`` on full, equally long batches.

    PYTHON benchmarks/peers/transformers_static.py --model DIR --dtype bfloat16 --batch-sizes 1 8

The best case of a static batch: nobody waits for a longer neighbour and nothing is padded.
Prints one JSON object; ``bench_peers.py`` calls it with the python of the environment to measure.
"""

import argparse
import json
import time

import torch
import transformers
from transformers import AutoModelForCausalLM

FIRST_PLAIN_ID = 256


def generate(
    model: torch.nn.Module, prompts: torch.Tensor, output_len: int, temperature: float
) -> float:
    """Return the seconds that ``output_len`` tokens for ``prompts`` [B, T] take."""
    how = {"do_sample": False}
    if temperature > 0:
        how = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    start = time.perf_counter()
    out = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        min_new_tokens=output_len,
        max_new_tokens=output_len,
        **how,
    )
    seconds = time.perf_counter() - start
    assert out.shape == (prompts.shape[0], prompts.shape[1] + output_len)
    return seconds


def measure(model: torch.nn.Module, batch_size: int, args: argparse.Namespace) -> dict[str, float]:
    """Return the throughput over ``args.waves`` batches with new prompts each, after a warm-up."""
    shape = (args.waves + 1, batch_size, args.input_len)
    generator = torch.Generator().manual_seed(args.seed + batch_size)
    vocab_size = model.config.vocab_size
    prompts = torch.randint(FIRST_PLAIN_ID, vocab_size, shape, generator=generator)
    generate(model, prompts[0], args.warmup_output_len, args.temperature)
    waves = prompts[1:]
    seconds = sum(generate(model, wave, args.output_len, args.temperature) for wave in waves)
    num_tokens = args.waves * batch_size * args.output_len
    return {"concurrency": batch_size, "output_throughput": num_tokens / seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description="transformers.generate on static batches.")
    parser.add_argument("--model", required=True, help="Hugging Face folder")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--input-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--warmup-output-len", type=int, default=8)
    parser.add_argument("--waves", type=int, default=1, help="batches measured per batch size")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 = greedy")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=args.dtype).eval()
    with torch.inference_mode():
        results = [measure(model, size, args) for size in args.batch_sizes]
    print(json.dumps({"results": results}))


if __name__ == "__main__":
    main()
