"""Published scores of reward models, in %, each with its source."""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """A score of a model on a benchmark (a name of `rlhf.data.evaluation.suite.SUITE`)."""

    benchmark: str
    model: str
    score: float
    source: str


HELPSTEER2 = "arXiv 2410.01257, Table 2"
HELPSTEER3 = "arXiv 2505.11475"
PRINCIPLES = "arXiv 2509.21319"
SKYWORK = "arXiv 2507.01352"

PUBLISHED = (
    Published("rewardbench", "Llama-3.1-Nemotron-70B-Reward", 94.1, HELPSTEER2),
    Published("rewardbench", "Skywork-Reward-Gemma-2-27B", 93.8, HELPSTEER2),
    Published("rewardbench-2", "Skywork-Reward-V2-Llama-3.1-8B", 84.1, SKYWORK),
    Published("rewardbench-2", "Skywork-Reward-V2-Llama-3.1-8B-40M", 86.5, SKYWORK),
    Published("rewardbench-2", "Skywork-Reward-V2-Qwen3-0.6B", 61.3, SKYWORK),
    Published(
        "rewardbench-2", "the longest answer", 21.3, "github.com/allenai/reward-bench, pull request 268"
    ),
    Published("rm-bench", "Llama-3.1-Nemotron-70B-Reward", 70.7, HELPSTEER3),
    Published("rm-bench", "Llama-3.3-Nemotron-70B-Reward", 79.9, HELPSTEER3),
    Published("rm-bench", "Llama-3.3-Nemotron-70B-Reward-Multilingual", 82.4, HELPSTEER3),
    Published("rm-bench", "Llama-3.3-Nemotron-70B-Reward-Principle", 83.6, PRINCIPLES),
    Published("rm-bench", "Qwen3-Nemotron-32B-GenRM-Principle", 86.2, PRINCIPLES),
    Published("rm-bench", "Skywork-Reward-V2-Llama-3.1-8B", 92.8, SKYWORK),
    Published("rm-bench", "Skywork-Reward-V2-Qwen3-0.6B", 74.4, SKYWORK),
    Published("judgebench", "Llama-3.1-Nemotron-70B-Reward", 66.9, HELPSTEER3),
    Published("judgebench", "Llama-3.3-Nemotron-70B-Reward", 73.7, HELPSTEER3),
    Published("judgebench", "Llama-3.3-Nemotron-70B-Reward-Multilingual", 69.4, HELPSTEER3),
    Published("judgebench", "Llama-3.3-Nemotron-70B-Reward-Principle", 76.3, PRINCIPLES),
    Published("judgebench", "Qwen3-Nemotron-32B-GenRM-Principle", 81.4, PRINCIPLES),
    Published("judgebench", "Skywork-Reward-V2-Llama-3.1-8B", 80.0, SKYWORK),
    Published("judgebench", "Skywork-Reward-V2-Qwen3-0.6B", 67.6, SKYWORK),
)


def published(benchmark: str) -> list[Published]:
    """The published scores of a benchmark, the highest first."""
    rows = [row for row in PUBLISHED if row.benchmark == benchmark]
    return sorted(rows, key=lambda row: -row.score)
