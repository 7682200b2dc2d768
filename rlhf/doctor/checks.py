"""All checks by group, and those that a run makes before it starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rlhf.doctor import checks_machine as machine
from rlhf.doctor import checks_memory as memory
from rlhf.doctor import checks_run as run
from rlhf.doctor.facts import Facts
from rlhf.doctor.results import Check, Finding

CHECKS: Mapping[str, Sequence[Check]] = {
    "Packages": (
        machine.python,
        machine.versions,
        machine.one_vllm,
        machine.torch_works,
        machine.optional_packages,
        machine.bitsandbytes,
        machine.vllm,
        machine.vllm_four_bits,
    ),
    "Machine": (
        machine.gpus,
        machine.driver,
        machine.cudnn,
        machine.processes,
        machine.bfloat16,
        machine.peers,
        memory.memory,
        memory.loading,
        machine.processor,
        machine.shared_memory,
        machine.open_files,
    ),
    "Model": (run.base, run.hub, run.length, run.tokenizer, run.trained, run.servers),
    "Data": (run.sources,),
    "Disk": (run.output, run.output_disk, run.cache_disk),
}
"""Group: its checks, in the order of the output."""

PREFLIGHT: Sequence[Check] = (
    machine.versions,
    machine.one_vllm,
    machine.vllm_four_bits,
    memory.memory,
    memory.loading,
    machine.processor,
    machine.shared_memory,
    run.output_disk,
)
"""Checks of files and package metadata, which take milliseconds; the run itself checks the config."""


def examine(facts: Facts) -> dict[str, list[Finding]]:
    """The results by group, without empty groups."""
    results = {group: [line for check in checks for line in check(facts)] for group, checks in CHECKS.items()}
    return {group: lines for group, lines in results.items() if lines}


def quick_examine(facts: Facts) -> list[Finding]:
    """The warnings and problems of `PREFLIGHT`."""
    results = [line for check in PREFLIGHT for line in check(facts)]
    return [line for line in results if line.verdict in ("warning", "problem")]
