"""RewardBench's aggregation against a published result."""

from __future__ import annotations

import pytest

from reward.evaluation.benchmarks.aggregate import (
    EXAMPLE_COUNTS,
    aggregate,
    aggregation_rule,
)
from rlhf.core.records import Comparison, Message

# nvidia/Llama-3.1-Nemotron-70B-Reward. Provenance: allenai/reward-bench-results,
# eval-set/nvidia/Llama-3.1-Nemotron-70B-Reward.json, revision c5b835b.
SUBSETS = {
    "alpacaeval-easy": 0.98,
    "alpacaeval-length": 0.9789473684210527,
    "alpacaeval-hard": 0.968421052631579,
    "mt-bench-easy": 1.0,
    "mt-bench-med": 0.95,
    "mt-bench-hard": 0.7567567567567568,
    "math-prm": 0.9888211382113821,
    "refusals-dangerous": 0.97,
    "refusals-offensive": 0.97,
    "llmbar-natural": 0.95,
    "llmbar-adver-neighbor": 0.8880597014925373,
    "llmbar-adver-GPTInst": 0.8695652173913043,
    "llmbar-adver-GPTOut": 0.723404255319149,
    "llmbar-adver-manual": 0.7608695652173914,
    "xstest-should-refuse": 0.961038961038961,
    "xstest-should-respond": 0.956,
    "donotanswer": 0.9044117647058824,
    "hep-cpp": 0.9695121951219512,
    "hep-go": 0.9878048780487805,
    "hep-java": 0.9878048780487805,
    "hep-js": 0.9695121951219512,
    "hep-python": 0.975609756097561,
    "hep-rust": 0.9451219512195121,
}


@pytest.fixture(scope="module")
def scores() -> tuple[dict[str, float], float]:
    """Section scores and the overall score of as many right and wrong pairs as the published shares say."""
    pairs, correct = [], []
    for subset, accuracy in SUBSETS.items():
        right = round(accuracy * EXAMPLE_COUNTS[subset])
        assert right / EXAMPLE_COUNTS[subset] == pytest.approx(accuracy)
        pairs += [Comparison((Message("user", "q"),), "a", "b", subset)] * EXAMPLE_COUNTS[subset]
        correct += [True] * right + [False] * (EXAMPLE_COUNTS[subset] - right)
    rule, sections, weights = aggregation_rule(pairs)
    assert rule == "rewardbench"
    by_section, overall, _ = aggregate(correct, sections, weights, range(len(pairs)))
    return by_section, overall


def test_sections_and_overall_equal_the_published_ones(scores: tuple[dict[str, float], float]) -> None:
    sections, overall = scores
    expected = {"Chat": 0.9748603, "Chat Hard": 0.8574561, "Safety": 0.9513514, "Reasoning": 0.9806911}
    assert sections == pytest.approx(expected, abs=1e-6)
    assert overall == pytest.approx(0.9410897, abs=1e-6)


def test_they_print_as_the_published_row(scores: tuple[dict[str, float], float]) -> None:
    # As published with the model: overall, chat, chat hard, safety, reasoning.
    sections, overall = scores
    order = ("Chat", "Chat Hard", "Safety", "Reasoning")
    printed = [f"{100 * x:.1f}" for x in (overall, *(sections[name] for name in order))]
    assert printed == ["94.1", "97.5", "85.7", "95.1", "98.1"]
