"""Quick checks before a run, before anything is loaded."""

from __future__ import annotations

import os
import sys

from rlhf.config.policy import PolicyConfig
from rlhf.config.reward import RewardConfig
from rlhf.core.errors import RunError
from rlhf.doctor import machine_facts as machine
from rlhf.doctor.checks import quick_examine
from rlhf.doctor.facts import Facts
from rlhf.doctor.results import Finding
from rlhf.doctor.run_facts import quick_run


def preflight(config: RewardConfig | PolicyConfig) -> list[Finding]:
    """Warnings and problems of this machine for a run; takes milliseconds and imports no torch."""
    return quick_examine(Facts(machine.packages(), machine.host(ask_driver=False), run=quick_run(config)))


def require_fit(config: RewardConfig | PolicyConfig) -> None:
    """Print the warnings, in the main process only.

    Raises:
        RunError: a check found a problem.
    """
    results = preflight(config)
    problems = [line for line in results if line.verdict == "problem"]
    if problems:
        raise RunError(
            "This machine is not ready for the run.\n"
            + "\n".join(f"{line.name}: {line.found}\n  {line.fix}" for line in problems),
            fix="the line below each problem; `rlhf doctor CONFIG.yaml` checks everything else",
        )
    if os.environ.get("RANK", "0") == "0":
        for line in results:
            print(f"Warning: {line.name}: {line.found}. Fix: {line.fix}", file=sys.stderr)
