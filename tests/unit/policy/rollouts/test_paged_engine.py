"""Continuous batching on the trainer's model, on a CPU: answers, log-probabilities, seeds, stop ids, and the
model as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from policy.rollouts.paged_engine import PagedEngine
from policy.rollouts.protocol import Sampling
from policy.rollouts.transformers_engine import TransformersEngine
from rlhf.core.errors import EngineError
from rlhf.core.records import Rollout
from rlhf.models.chat import Chat
from rlhf.models.forwards import enable_packed_logprobs
from rlhf.runs.gpu_memory import GpuMemoryError

LENGTH = 8
OFTEN = tuple(range(0, 49_152, 8))  # stop ids that a random model meets at every eighth token


@pytest.fixture(scope="module")
def model(model: Any) -> Any:
    enable_packed_logprobs(model.get_base_model(), 1.0)
    return model


def engine(chat: Chat, model: Any, temperature: float = 1.0, stop_ids: tuple[int, ...] = ()) -> PagedEngine:
    made = PagedEngine(Sampling(LENGTH, temperature, stop_ids or chat.stop_ids), chat, max_batch_tokens=256)
    made.sync(model)
    return made


def alone(model: Any, rollout: Rollout, temperature: float = 1.0) -> list[float]:
    """Log-probabilities of an answer by the model's plain forward pass."""
    ids = torch.tensor([[*rollout.prompt_ids, *rollout.completion_ids]])
    model.eval()
    with torch.no_grad():
        logps_TV = (model(ids).logits[0].float() / temperature).log_softmax(-1)
    start = len(rollout.prompt_ids)
    return [float(logps_TV[start - 1 + i, token]) for i, token in enumerate(rollout.completion_ids)]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_groups_log_probabilities_and_mode(
    tiny_chat: Chat, model: Any, prompts: list[list[int]], temperature: float
) -> None:
    model.train()
    implementation = model.get_base_model().config._attn_implementation
    state = torch.get_rng_state()
    groups = engine(tiny_chat, model, temperature).generate(prompts, samples=3, seed=0)
    assert model.training and all(module.training for module in model.modules())
    assert model.get_base_model().config._attn_implementation == implementation
    assert torch.equal(torch.get_rng_state(), state)
    assert [len(group) for group in groups] == [3, 3]
    for ids, group in zip(prompts, groups, strict=True):
        assert len({rollout.completion_ids for rollout in group}) == 3
        for rollout in group:
            assert rollout.prompt_ids == tuple(ids)
            assert rollout.text == tiny_chat.decode(rollout.completion_ids)
            assert rollout.logprobs == pytest.approx(alone(model, rollout, temperature), abs=1e-4)


def test_the_seed_decides(tiny_chat: Chat, model: Any, prompts: list[list[int]]) -> None:
    sampler = engine(tiny_chat, model)
    first = sampler.generate(prompts, samples=4, seed=7)
    assert sampler.generate(prompts, samples=4, seed=7) == first
    assert sampler.generate(prompts, samples=4, seed=8) != first


def test_an_answer_ends_at_its_first_stop_id(tiny_chat: Chat, model: Any, prompts: list[list[int]]) -> None:
    groups = engine(tiny_chat, model, stop_ids=OFTEN).generate(prompts, samples=8, seed=0)
    rollouts = [rollout for group in groups for rollout in group]
    for rollout in rollouts:
        *before, last = rollout.completion_ids
        assert not any(token in OFTEN for token in before)
        assert rollout.finished == (last in OFTEN)
        assert rollout.finished or len(rollout.completion_ids) == LENGTH
    assert 0 < sum(rollout.finished for rollout in rollouts) < 16


def test_greedy_answers_are_those_of_generate(tiny_chat: Chat, model: Any, prompts: list[list[int]]) -> None:
    padded = TransformersEngine(Sampling(LENGTH, 0.0, tiny_chat.stop_ids), tiny_chat)
    padded.sync(model)
    expected = [group[0].completion_ids for group in padded.generate(prompts, samples=1, seed=0)]
    paged = engine(tiny_chat, model, temperature=0.0).generate(prompts, samples=1, seed=0)
    assert [group[0].completion_ids for group in paged] == expected


@pytest.mark.parametrize("message", ["CUDA out of memory", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED"])
def test_an_answer_that_does_not_come_is_an_error(
    tiny_chat: Chat, model: Any, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError(message)

    monkeypatch.setattr(model.get_base_model(), "forward", fails)
    model.train()
    with pytest.raises(GpuMemoryError) as caught:
        engine(tiny_chat, model).generate(prompts, samples=2, seed=0)
    assert caught.value.phase == "rollouts"
    assert model.training


def test_another_failure_of_the_engine_is_named(
    tiny_chat: Chat, model: Any, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(model.get_base_model(), "forward", fails)
    with pytest.raises(EngineError, match="no kernel image"):
        engine(tiny_chat, model).generate(prompts, samples=2, seed=0)


def test_generate_before_sync(tiny_chat: Chat) -> None:
    with pytest.raises(EngineError):
        PagedEngine(Sampling(4, 1.0, tiny_chat.stop_ids), tiny_chat, max_batch_tokens=64).generate(
            [[1]], samples=1, seed=0
        )
