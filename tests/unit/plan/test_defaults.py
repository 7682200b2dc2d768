"""Settings that the plan chooses for a GPU: they fit, they fill it, and what a config says stays."""

from __future__ import annotations

from typing import Any

from rlhf.config.policy import PolicyConfig
from rlhf.config.reward import RewardConfig
from rlhf.plan.defaults import SPARE, chosen
from rlhf.plan.gpus import parse_gpus
from rlhf.plan.memory.phases import Tracer, engine_of, phases
from rlhf.plan.memory.shapes import load_shape
from rlhf.plan.request import Request

TRACER = Tracer(load_shape("embedded"))
REWARD = {
    "output": "unused",
    "model": {"max_length": 512},
    "data": {"preferences": [{"path": "demo", "format": "helpsteer2-preference"}]},
    "stages": [{"name": "pairs", "preference_weight": 1}],
}
POLICY = {
    "output": "unused",
    "model": {"max_length": 512},
    "reward": "r/final",
    "data": {"prompts": [{"path": "demo"}], "max_prompt_tokens": 128},
}


def request(config: Any, gpus: str) -> Request:
    return Request(config, parse_gpus(gpus), "one")


def test_a_large_gpu_gets_the_largest_rows() -> None:
    fitted, taken = chosen(request(RewardConfig.model_validate(REWARD), "1x80GB"), TRACER)
    assert taken == {"tokens_per_batch": 16_384}
    assert fitted.config.tokens_per_batch == 16_384


def test_a_small_one_gets_what_fits() -> None:
    fitted, taken = chosen(request(RewardConfig.model_validate(REWARD), "1x4GB"), TRACER)
    assert 1024 <= taken["tokens_per_batch"] < 16_384
    assert all(phase.total <= (1 - SPARE) * phase.capacity for phase in phases(fitted, TRACER))


def test_what_the_config_says_stays() -> None:
    config = RewardConfig.model_validate({**REWARD, "tokens_per_batch": 2048})
    fitted, taken = chosen(request(config, "1x80GB"), TRACER)
    assert not taken
    assert fitted.config.tokens_per_batch == 2048


def test_an_engine_gets_its_share_and_no_more_than_it_needs() -> None:
    fitted, taken = chosen(request(PolicyConfig.model_validate(POLICY), "1x24GB"), TRACER)
    assert taken.keys() == {
        "tokens_per_batch",
        "rollouts.max_num_batched_tokens",
        "rollouts.gpu_memory_share",
    }
    assert taken["rollouts.max_num_batched_tokens"] == 2048
    engine = engine_of(fitted, TRACER)
    rollouts = fitted.config.rollouts
    assert engine is not None
    assert engine.memory.at_once == rollouts.prompts_per_step * rollouts.samples_per_prompt
    assert all(phase.fits for phase in phases(fitted, TRACER))
    config = PolicyConfig.model_validate({**POLICY, "rollouts": {"gpu_memory_share": 0.6}})
    assert "rollouts.gpu_memory_share" not in chosen(request(config, "1x24GB"), TRACER)[1]


def test_nothing_is_chosen_where_nothing_fits() -> None:
    fitted, taken = chosen(request(RewardConfig.model_validate(REWARD), "1x1GB"), TRACER)
    assert not taken
    assert fitted.config.tokens_per_batch == 1024


def test_where_nothing_fits_the_engines_step_is_named_all_the_same() -> None:
    """A run samples with it."""
    fitted, taken = chosen(request(PolicyConfig.model_validate(POLICY), "1x1GB"), TRACER)
    assert taken == {"rollouts.max_num_batched_tokens": 2048}
    assert fitted.config.rollouts.max_num_batched_tokens == 2048
