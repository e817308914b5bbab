"""What ``scripts/fuzz`` runs: a server of a tiny random model, the fuzzer, then schemathesis."""

import argparse
import asyncio
import subprocess
import sys
import tempfile
from pathlib import Path

from e2e.live_server import LiveServer, launched
from fuzz.fuzzer import FLAGS, NO_CACHE, fuzz
from make_tiny_checkpoint import make_tiny_llama

CONFIG = Path(__file__).parent / "schemathesis.toml"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--examples", type=int, default=200, help="of schemathesis, per operation")
    parser.add_argument("--schemathesis", help="its program; without it only the fuzzer runs")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = make_tiny_llama(Path(folder) / "llama", tokenizer="bytes")
        log_path = Path(folder) / "log"
        flags = f"--model-path {checkpoint} {FLAGS}"
        with launched(log_path, f"{flags} {NO_CACHE}") as server:
            statuses = [_fuzz(server, asked.requests // 10, asked.seed + 2)]
        with launched(log_path, flags) as server:
            statuses.append(_fuzz(server, asked.requests, asked.seed))
            if asked.schemathesis:
                statuses.append(_schemathesis(server, asked.schemathesis, asked.examples))
            # the fuzzer looks at the server before and after: so this is schemathesis's check
            statuses.append(_fuzz(server, 200, asked.seed + 1))
            if "Traceback" in server.log:
                print(server.log[server.log.index("Traceback") - 500 :][:5000])
                statuses.append(1)
    return max(statuses)


def _fuzz(server: LiveServer, num_requests: int, seed: int) -> int:
    report = asyncio.run(fuzz(server.url, num_requests=num_requests, seed=seed))
    for problem in report.problems[:50]:
        print(problem[:2000])
    statuses = ", ".join(f"{status}: {n}" for status, n in sorted(report.statuses.items()))
    print(f"{report.num_requests} requests in {report.seconds:.0f} s; {statuses}; "
          f"{len(report.problems)} problems", flush=True)  # fmt: skip
    return int(bool(report.problems))


def _schemathesis(server: LiveServer, program: str, num_examples: int) -> int:
    command = [
        program, "--config-file", str(CONFIG), "run", f"{server.url}/openapi.json",
        "--max-examples", str(num_examples), "--workers", "4", "--request-timeout", "60",
        "--continue-on-failure", "--no-color",
    ]  # fmt: skip
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
