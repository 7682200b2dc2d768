"""Time of a policy's phases on the embedded model, against formulas written out here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rlhf.config.policy import PolicyConfig
from rlhf.plan.changes import _checkpointing
from rlhf.plan.gpus import Cluster, parse_gpus
from rlhf.plan.memory.engine import CACHED_SHARE, token_bytes, weight_bytes
from rlhf.plan.memory.phases import Tracer, adapter_bytes, engine_of
from rlhf.plan.memory.shapes import load_shape
from rlhf.plan.request import Assumptions, Request, row_of
from rlhf.plan.speed import Speed, bill

TRACER = Tracer(load_shape("embedded"))
GPU = parse_gpus("1xL40S").gpu
SLOW_LINK = replace(GPU, link=1e-6)
"""GB/s so few that gathering weights takes longer than all else."""
UPDATES, PROMPTS, SAMPLES, PROMPT, ANSWER = 10, 8, 4, 100, 50
ASSUMED = Assumptions(prompt_tokens=PROMPT // 2, answer_tokens=ANSWER // 2)


def config(**rollouts: Any) -> PolicyConfig:
    model = {"max_length": 512, "dtype": "bfloat16", **rollouts.pop("model", {})}
    sizes = {"prompts_per_step": PROMPTS, "samples_per_prompt": SAMPLES, "max_new_tokens": ANSWER}
    return PolicyConfig.model_validate(
        {
            "output": "unused",
            "model": model,
            "reward": [{"function": "gold"}],
            "data": {"prompts": [{"path": "demo"}], "max_prompt_tokens": PROMPT},
            "rollouts": {**sizes, **rollouts},
            "steps": UPDATES,
        }
    )


def times(request: Request) -> dict[str, Speed]:
    total = bill(request, TRACER, ASSUMED)
    assert total is not None
    assert total.hours == pytest.approx(sum(phase.hours for phase in total.phases))
    return {phase.name: phase for phase in total.phases}


def alone(**rollouts: Any) -> Request:
    return Request(config(**rollouts), Cluster(GPU, 1), "one")


def sharded(**rollouts: Any) -> Request:
    return Request(config(**rollouts), Cluster(SLOW_LINK, 2), "fsdp")


def test_padded_rollouts_decode_until_the_longest_answer_ends() -> None:
    request = alone(engine="transformers", continuous_batching=False)
    rollouts = times(request)["rollouts"]
    shape, answers = TRACER.shape, PROMPTS * SAMPLES
    parameters, width = weight_bytes(shape, 1, "none"), 2  # bfloat16

    def hours(prompt: int, answer: int, utilisation: float) -> float:
        flops = GPU.tflops * 1e12 * utilisation  # type: ignore[operator]
        cached = answers * (prompt + answer / 2) * token_bytes(shape, width)
        read = parameters * width + adapter_bytes(request.config, TRACER) + cached  # type: ignore[arg-type]
        step = max(
            read / (GPU.bandwidth * 1e9 * CACHED_SHARE),  # type: ignore[operator]
            2 * parameters * answers / flops,
        )
        return UPDATES * (2 * parameters * answers * prompt / flops + answer * step) / 3600

    worst, best = ASSUMED.utilisation
    assert rollouts.hours == pytest.approx(hours(PROMPT // 2, ANSWER // 2, best))
    assert rollouts.most_hours == pytest.approx(hours(PROMPT, ANSWER, worst))
    answered = UPDATES * answers * ANSWER // 2
    assert rollouts.tokens_per_second == pytest.approx(answered / rollouts.hours / 3600)


def test_sharded_weights_are_gathered_for_every_token() -> None:
    phases = times(sharded(engine="transformers"))
    # A pass over the prompts and one for each token; log-probabilities take a single pass.
    once = phases["log-probabilities"].hours
    assert phases["rollouts"].hours == pytest.approx((ANSWER // 2 + 1) * once)
    assert phases["rollouts"].most_hours == pytest.approx((ANSWER + 1) * once)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_update_gathers_sharded_weights_twice(checkpointing: bool) -> None:
    phases = times(sharded(engine="transformers", model={"gradient_checkpointing": checkpointing}))
    assert phases["update"].hours == pytest.approx(2 * phases["log-probabilities"].hours)


@pytest.mark.parametrize("engine", ["vllm", "transformers"])
def test_rollouts_in_4_bits_take_half_as_long_again_to_twice_as_long(engine: str) -> None:
    plain = times(alone(engine=engine))["rollouts"]
    four_bits = times(alone(engine=engine, model={"quantization": "nf4"}))["rollouts"]
    assert four_bits.hours == pytest.approx(1.5 * plain.hours)
    assert four_bits.most_hours == pytest.approx(2.0 * plain.most_hours)


def test_moving_a_sleeping_engine_is_not_sampling() -> None:
    """Its 4-bit weights cross PCIe as they are."""

    def moving(model: dict[str, str]) -> float:
        asleep, awake = (times(alone(engine="vllm", sleep=sleep, model=model)) for sleep in (True, False))
        return asleep["rollouts"].hours - awake["rollouts"].hours

    engines = [
        engine_of(alone(engine="vllm", model={"quantization": kind}), TRACER) for kind in ("nf4", "none")
    ]
    weights = [engine.memory.weights for engine in engines if engine]
    ratio = moving({"quantization": "nf4"}) / moving({"quantization": "none"})
    assert ratio == pytest.approx(weights[0] / weights[1])


def test_decoding_on_the_trained_model_reads_no_moments() -> None:
    paged, copied = (times(alone(engine=engine))["rollouts"] for engine in ("transformers", "vllm"))
    assert paged.hours == pytest.approx(copied.hours)


def test_checkpointing_costs_what_the_trace_recomputes() -> None:
    request = alone(engine="vllm")
    price = next(_checkpointing(request, TRACER)).price
    row = row_of(request.config)
    plain, recomputed = (TRACER(replace(row, checkpointing=on)).flops["update"] for on in (False, True))
    # Forwards and backwards without gradients of the base are 4 FLOPs a parameter, forwards again 2.
    assert 1.3 < recomputed / plain < 1.5
    assert f"{recomputed / plain - 1:.0%}" in price
