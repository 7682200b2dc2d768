"""vLLM's sleep mode: asleep but while it samples. The engine is a stand-in; the mode itself needs a GPU."""

from __future__ import annotations

from typing import Any

import pytest

from policy.rollouts.protocol import Sampling
from policy.rollouts.vllm import engine as vllm_engine
from policy.rollouts.vllm.arguments import EngineSettings
from policy.rollouts.vllm.engine import VLLMEngine
from rlhf.config.policy import PolicyConfig
from rlhf.plan.gpus import parse_gpus
from rlhf.plan.memory.phases import ENGINE, Tracer, phases
from rlhf.plan.memory.shapes import load_shape
from rlhf.plan.request import Assumptions, Request
from rlhf.plan.speed import bill

POLICY = {
    "output": "unused",
    "reward": "r/final",
    "model": {"max_length": 512},
    "data": {"prompts": [{"path": "demo"}], "max_prompt_tokens": 128},
}


class Recorded:
    """A stand-in for vLLM's LLM."""

    def __init__(self, **arguments: Any) -> None:
        self.arguments, self.calls = arguments, list[str]()

    def sleep(self, level: int) -> None:
        self.calls.append(f"sleep {level}")

    def wake_up(self) -> None:
        self.calls.append("wake up")


@pytest.mark.parametrize("sleep", [True, False])
def test_it_sleeps_but_while_it_works(monkeypatch: pytest.MonkeyPatch, *, sleep: bool) -> None:
    monkeypatch.setattr(vllm_engine, "_import_vllm", lambda *, cpu: Recorded)
    monkeypatch.setattr(vllm_engine, "check_settings", lambda settings, *, on_gpu: None)
    settings = EngineSettings("b", None, 8, 64, 4, "bfloat16", "none", 0.5, 0.3, seed=0, sleep=sleep)
    chat: Any = None
    engine = VLLMEngine(settings, Sampling(4, 1.0, (1,)), chat)
    engine._wake()
    engine._wake()  # awake already
    engine._sleep()
    assert engine.engine.calls == (["sleep 1", "wake up", "sleep 1"] if sleep else [])


def test_a_sleeping_engine_takes_memory_in_rollouts_alone_and_time_to_move() -> None:
    tracer = Tracer(load_shape("embedded"))
    hours = {}
    for sleep in (True, False):
        config = PolicyConfig.model_validate({**POLICY, "rollouts": {"sleep": sleep}})
        request = Request(config, parse_gpus("1xL40S"), "one")
        rollouts, *others = phases(request, tracer)
        assert rollouts.kinds[ENGINE] > 0
        assert all((ENGINE in phase.kinds) is not sleep for phase in others)
        result = bill(request, tracer, Assumptions())
        assert result is not None
        hours[sleep] = result.phases[0].hours
    assert hours[True] > hours[False]
