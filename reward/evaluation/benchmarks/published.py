"""Published scores of reward models, in %, each with its source.

Not here: scores that another rule computes. Skywork-Reward-V2's JudgeBench figures, for example, are means
over its four sources, where JudgeBench takes the mean over all pairs.
"""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """A score of a model on a benchmark (a name of `rlhf.data.evaluation.suite.SUITE`)."""

    benchmark: str
    model: str
    score: float
    source: str


HELPSTEER2 = "arXiv 2410.01257, Table 2"
HELPSTEER3 = "model card of nvidia/Llama-3.3-Nemotron-70B-Reward-Multilingual; arXiv 2505.11475"
PRINCIPLE = "model card of nvidia/Llama-3.3-Nemotron-70B-Reward-Principle; arXiv 2509.21319"
GENRM_PRINCIPLE = "model card of nvidia/Qwen3-Nemotron-32B-GenRM-Principle; arXiv 2509.21319"
QWEN_REWARD = "model card of nvidia/Qwen-3-Nemotron-32B-Reward"
GENRM = "model card of nvidia/Qwen3-Nemotron-235B-A22B-GenRM"
SKYWORK = "README of github.com/SkyworkAI/Skywork-Reward-V2; arXiv 2507.01352"

PUBLISHED = (
    Published("rewardbench", "Llama-3.1-Nemotron-70B-Reward", 94.1, HELPSTEER2),
    Published("rewardbench", "Skywork-Reward-Gemma-2-27B", 93.8, HELPSTEER2),
    Published("rewardbench", "Skywork-Reward-V2-Llama-3.1-8B-40M", 97.8, SKYWORK),
    Published("rewardbench", "Skywork-Reward-V2-Llama-3.1-8B", 96.4, SKYWORK),
    Published("rewardbench", "Skywork-Reward-V2-Qwen3-0.6B", 85.2, SKYWORK),
    Published("rewardbench-2", "Skywork-Reward-V2-Llama-3.1-8B", 84.1, SKYWORK),
    Published("rewardbench-2", "Skywork-Reward-V2-Llama-3.1-8B-40M", 86.5, SKYWORK),
    Published("rewardbench-2", "Skywork-Reward-V2-Qwen3-0.6B", 61.3, SKYWORK),
    Published("rm-bench", "Llama-3.1-Nemotron-70B-Reward", 70.7, HELPSTEER3),
    Published("rm-bench", "Llama-3.3-Nemotron-70B-Reward", 79.9, HELPSTEER3),
    Published("rm-bench", "Llama-3.3-Nemotron-70B-Reward-Multilingual", 82.4, HELPSTEER3),
    Published("rm-bench", "Qwen-3-Nemotron-32B-Reward", 81.9, QWEN_REWARD),
    Published("rm-bench", "Llama-3.3-Nemotron-70B-Reward-Principle", 83.6, PRINCIPLE),
    Published("rm-bench", "Qwen3-Nemotron-32B-GenRM-Principle", 86.2, GENRM_PRINCIPLE),
    Published("rm-bench", "Qwen3-Nemotron-235B-A22B-GenRM", 87.3, GENRM),
    Published("rm-bench", "Skywork-Reward-V2-Llama-3.1-8B", 92.8, SKYWORK),
    Published("rm-bench", "Skywork-Reward-V2-Llama-3.1-8B-40M", 96.0, SKYWORK),
    Published("rm-bench", "Skywork-Reward-V2-Qwen3-0.6B", 74.4, SKYWORK),
    Published("judgebench", "Llama-3.1-Nemotron-70B-Reward", 66.9, "arXiv 2505.11475"),
    Published("judgebench", "Llama-3.3-Nemotron-70B-Reward", 73.7, HELPSTEER3),
    Published("judgebench", "Llama-3.3-Nemotron-70B-Reward-Multilingual", 69.4, HELPSTEER3),
    Published("judgebench", "Qwen-3-Nemotron-32B-Reward", 72.3, QWEN_REWARD),
    Published("judgebench", "Llama-3.3-Nemotron-70B-Reward-Principle", 76.3, PRINCIPLE),
    Published("judgebench", "Qwen3-Nemotron-32B-GenRM-Principle", 81.4, GENRM_PRINCIPLE),
    Published("judgebench", "Qwen3-Nemotron-235B-A22B-GenRM", 87.4, GENRM),
)


def published(benchmark: str) -> list[Published]:
    """The published scores of a benchmark, the highest first."""
    rows = [row for row in PUBLISHED if row.benchmark == benchmark]
    return sorted(rows, key=lambda row: -row.score)
