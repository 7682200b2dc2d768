from __future__ import annotations

import math

import pytest
import torch

from policy.rollouts.probe import EngineProbe
from rlhf.core.errors import EngineError

POLICY = torch.tensor([-1.0, -2.0, -3.0])
ANSWER = torch.tensor([0, 0, 1])


def probe(engine: list[float], reference: list[float]) -> EngineProbe:
    gathered = EngineProbe("token", cap=2.0)
    gathered.add(torch.tensor(engine), POLICY, torch.tensor(reference), ANSWER, 2)
    return gathered


def test_figures_by_hand() -> None:
    figures = probe([-1.5, -2.0, -2.0], [-1.0, -2.5, -2.0]).figures()
    weights = [math.exp(0.5), 1.0, math.exp(-1)]
    assert figures == pytest.approx(
        {
            "engine/logprob_difference": (0.5 + 0 + 1) / 3,
            "engine/logprob_difference_max": 1.0,
            "engine/reference_difference": (0.5 + 0.5 + 0) / 3,
            "importance/mean": sum(weights) / 3,
            "importance/max": math.exp(0.5),
            "importance/truncated_share": 0.0,
        }
    )
    assert probe([-2.0, -2.0, -3.0], [0.0] * 3).figures()["importance/truncated_share"] == pytest.approx(
        1 / 3
    )


def test_an_engine_that_tells_nothing_is_not_compared() -> None:
    silent = EngineProbe("token", cap=2.0)
    silent.add(None, POLICY, POLICY, ANSWER, 2)
    assert silent.figures() == {}
    silent.check(0.0, "ever")


def test_disagreement_stops_the_run() -> None:
    apart = probe([-2.0, -3.0, -4.0], [-9.0] * 3)
    apart.check(1.01, "at update 3")
    with pytest.raises(EngineError, match=r"update 3: .* 1\.000") as caught:
        apart.check(0.99, "at update 3")
    assert "0.99" in caught.value.allowed and "rollouts.logprob_bound" in caught.value.allowed
    with pytest.raises(EngineError, match="update 3"):
        probe([math.nan, -2.0, -3.0], [0.0] * 3).check(0.5, "at update 3")


def test_an_engine_without_the_adapter_stops_the_run_though_it_is_within_the_bound() -> None:
    reference = [-1.1, -2.2, -3.1]
    noisy = [-1.11, -2.19, -3.1]  # the reference's, up to rounding
    with pytest.raises(EngineError, match="reference at update 3"):
        probe(noisy, reference).check(0.5, "at update 3")
    probe([-1.01, -1.99, -3.0], reference).check(0.5, "at update 3")  # the policy's, up to rounding
    probe([-1.01, -1.99, -3.0], POLICY.tolist()).check(0.5, "at update 1")  # both the same still


def test_answers_of_an_older_policy_are_held_against_that_one() -> None:
    present = probe([-1.5, -2.5, -3.5], [-1.0, -2.0, -3.0])  # half a nat from the present policy
    alone = present.figures()
    present.sampler = probe([-1.1, -2.0, -3.0], [-1.5, -2.0, -3.0])  # which is what the update changed
    figures = present.figures()
    assert figures["engine/lagged_difference"] == alone["engine/logprob_difference"] == 0.5
    assert figures["engine/logprob_difference"] == pytest.approx(0.1 / 3)
    assert figures["engine/reference_difference"] == pytest.approx(0.4 / 3)
    assert figures["importance/mean"] == alone["importance/mean"]  # corrects the lag too
    present.check(bound=0.1, when="at update 2")
    present.sampler = probe([-1.5, -2.0, -3.0], [0.0] * 3)
    with pytest.raises(EngineError, match="update 3"):
        present.check(bound=0.1, when="at update 3")
