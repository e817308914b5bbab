"""A server whose device is lost at a chosen step: run it as ``dying_server.py STEP FLAGS…``."""

import asyncio
import itertools
import sys

from jaxserve.batch import StepInputs
from jaxserve.config import EngineConfig
from jaxserve.executor.runner import PendingStep
from jaxserve.flags import parse_flags
from jaxserve.launch import serve
from jaxserve.llm import LLM


def main() -> int:
    """Serve as ``jaxserve.launch`` does, with a runner that raises from step ``argv[1]`` on."""
    last_step = int(sys.argv[1])
    engine_config, server_config = parse_flags(sys.argv[2:])

    def build(config: EngineConfig) -> LLM:
        llm = LLM(config=config)
        runner = llm._engine._runner
        launch, steps = runner.launch, itertools.count(1)

        def failing_launch(inputs: StepInputs, deferred: list[int]) -> PendingStep:
            if next(steps) >= last_step:
                raise RuntimeError("device lost")
            return launch(inputs, deferred)

        runner.launch = failing_launch
        return llm

    return asyncio.run(serve(engine_config, server_config, build))


if __name__ == "__main__":
    sys.exit(main())
