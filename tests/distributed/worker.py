"""One process of several: runs commands one after another. Started by `accelerate launch`.

    accelerate launch ... tests/distributed/worker.py JOBS.json OUTCOMES

Answers depend on the prompt only, since processes would sample different ones.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from policy.rollouts.protocol import as_rollout
from policy.training import build as policy_build
from rlhf import cli
from rlhf.distributed import processes, sharding
from rlhf.runs.folder import RunFolder


class Killed(BaseException):
    """Simulates SIGKILL: no code catches it."""


class FixedAnswers:
    """A rollout engine whose answers depend on the prompt and their number only."""

    def __init__(self, chat: Any) -> None:
        self.chat = chat

    def sync(self, model: Any) -> None:
        """Do nothing."""

    def figures(self) -> dict[str, float]:
        """No metrics."""
        return {}

    def generate(self, prompts: Sequence[Sequence[int]], *, samples: int, seed: int) -> list[list[Any]]:
        """Two to six tokens, then perhaps a stop id."""
        return [[self._answer(list(ids), number) for number in range(samples)] for ids in prompts]

    def _answer(self, prompt: list[int], number: int) -> Any:
        generator = random.Random(hashlib.sha256(json.dumps([prompt, number]).encode()).hexdigest())
        ids = [generator.randrange(1000, 2000) for _ in range(generator.randint(2, 6))]
        if generator.random() < 0.5:
            ids.append(self.chat.stop_ids[0])
        return as_rollout(prompt, ids, [], self.chat.stop_ids, self.chat)


def run(job: Mapping[str, Any]) -> dict[str, Any]:
    """Run one command.

    With `kill_at` it stops as if killed, after it has logged that update. With `signal_at` (update, rank)
    that rank gets SIGTERM after that update.
    """
    log, build, shard = RunFolder.metrics, policy_build.build_engine, sharding.shard
    seen: list[bool] = []

    def metrics(self: RunFolder, step: int, values: Any) -> None:
        log(self, step, values)
        if step == job.get("kill_at") and "optimizer/lr" in values:
            raise Killed
        if [step, processes.rank()] == job.get("signal_at"):
            os.kill(os.getpid(), signal.SIGTERM)

    def sharded(model: Any) -> None:
        shard(model)
        states = {
            hasattr(parameter, "to_local") or (hasattr(parameter, "ds_tensor") and parameter.numel() == 0)
            for parameter in model.parameters()
        }
        assert len(states) == 1, "only some weights are sharded"
        seen.extend(states)

    RunFolder.metrics, sharding.shard = metrics, sharded  # type: ignore[method-assign]
    if not job.get("samples"):
        policy_build.build_engine = lambda config, chat: FixedAnswers(chat)  # type: ignore[assignment, return-value]
    try:
        result = CliRunner().invoke(cli.app, job["words"], prog_name="rlhf")
        return {"exit": result.exit_code, "output": result.output, "sharded": seen, "error": _trace(result)}
    except Killed:
        return {"exit": "killed", "output": "", "sharded": seen}
    finally:
        RunFolder.metrics, policy_build.build_engine, sharding.shard = log, build, shard  # type: ignore[method-assign]


def _trace(result: Any) -> str:
    import traceback

    expected = result.exception is None or isinstance(result.exception, SystemExit)
    return "" if expected else "".join(traceback.format_exception(result.exception))


if __name__ == "__main__":
    jobs = json.loads(Path(sys.argv[1]).read_text())
    outcomes = {name: run(job) for name, job in jobs.items()}
    Path(f"{sys.argv[2]}-{processes.rank()}.json").write_text(json.dumps(outcomes))
    processes.destroy()
