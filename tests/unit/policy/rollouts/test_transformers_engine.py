from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, LlamaForCausalLM

from policy.rollouts.protocol import Sampling
from policy.rollouts.transformers_engine import TransformersEngine
from rlhf.core.errors import EngineError
from rlhf.core.records import Rollout
from rlhf.models.chat import Chat
from rlhf.models.loading import load_causal

LENGTH = 12
OFTEN = tuple(range(0, 49_152, 8))  # stop ids that a random model meets at every eighth token


def engine(
    chat: Chat, model: Any, temperature: float = 1.0, stop_ids: tuple[int, ...] = ()
) -> TransformersEngine:
    made = TransformersEngine(Sampling(LENGTH, temperature, stop_ids or chat.stop_ids), chat)
    made.sync(model)
    return made


def tokens(groups: list[list[Rollout]]) -> list[list[tuple[int, ...]]]:
    return [[rollout.completion_ids for rollout in group] for group in groups]


def test_every_prompt_has_its_answers(tiny_chat: Chat, model: Any, prompts: list[list[int]]) -> None:
    groups = engine(tiny_chat, model).generate(prompts, samples=3, seed=0)
    assert [len(group) for group in groups] == [3, 3]
    for ids, group in zip(prompts, groups, strict=True):
        assert len({rollout.completion_ids for rollout in group}) == 3
        for rollout in group:
            assert rollout.prompt_ids == tuple(ids)
            assert rollout.text == tiny_chat.decode(rollout.completion_ids)
            assert rollout.logprobs == ()


def test_the_seed_decides_and_nothing_else(tiny_chat: Chat, model: Any, prompts: list[list[int]]) -> None:
    sampler = engine(tiny_chat, model)
    first = sampler.generate(prompts, samples=2, seed=7)
    state = torch.get_rng_state()
    assert sampler.generate(prompts, samples=2, seed=7) == first
    assert sampler.generate(prompts, samples=2, seed=8) != first
    assert torch.equal(torch.get_rng_state(), state)  # the run's own random numbers are not used up


def test_an_answer_ends_at_its_first_stop_id(tiny_chat: Chat, model: Any, prompts: list[list[int]]) -> None:
    groups = engine(tiny_chat, model, stop_ids=OFTEN).generate(prompts, samples=16, seed=0)
    rollouts = [rollout for group in groups for rollout in group]
    for rollout in rollouts:
        *before, last = rollout.completion_ids
        assert not any(token in OFTEN for token in before)
        assert rollout.finished == (last in OFTEN)
        assert rollout.finished or len(rollout.completion_ids) == LENGTH
    assert 0 < sum(rollout.finished for rollout in rollouts) < 32  # some of both, or nothing was tested


def test_padding_changes_no_answer(tiny_chat: Chat, model: Any, prompts: list[list[int]]) -> None:
    """Near temperature 0 a draw is the likeliest token, alone or beside a longer prompt."""
    sampler = engine(tiny_chat, model, temperature=1e-4)
    alone = [tokens(sampler.generate([ids], samples=1, seed=0))[0] for ids in prompts]
    assert tokens(sampler.generate(prompts, samples=1, seed=0)) == alone


def test_it_is_the_policy_that_answers_and_without_dropout(
    tiny_chat: Chat, model: Any, prompts: list[list[int]]
) -> None:
    model.train()
    sampler = engine(tiny_chat, model, temperature=1e-4)
    answers = tokens(sampler.generate(prompts[:1], samples=1, seed=0))
    assert model.training  # as it was before
    ids = list(prompts[0])
    model.eval()
    with torch.no_grad():
        for _ in range(LENGTH):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    assert answers == [[tuple(ids[len(prompts[0]) :])]]
    with model.disable_adapter():
        assert tokens(sampler.generate(prompts[:1], samples=1, seed=0)) != answers


def test_the_models_own_taste_in_sampling_is_not_asked(
    tiny_base: Path, tiny_chat: Chat, prompts: list[list[int]], tmp_path: Path
) -> None:
    """A generation_config.json may cut or bend the distribution.

    Log-probabilities are those of the whole one.
    """

    def answers(base: Path) -> list[list[tuple[int, ...]]]:
        loaded = load_causal(str(base), revision=None, dtype="float32", quantization="none")
        return tokens(engine(tiny_chat, loaded).generate(prompts, samples=2, seed=0))

    bent = LlamaForCausalLM.from_pretrained(tiny_base)
    bent.generation_config = GenerationConfig(
        do_sample=True,
        temperature=0.1,
        top_k=5,
        top_p=0.5,
        min_p=0.2,
        repetition_penalty=1.5,
        no_repeat_ngram_size=1,
    )
    bent.save_pretrained(tmp_path)
    assert answers(tmp_path) == answers(tiny_base)


def test_generate_before_sync(tiny_chat: Chat) -> None:
    with pytest.raises(EngineError, match="sync"):
        TransformersEngine(Sampling(4, 1.0, tiny_chat.stop_ids), tiny_chat).generate([[1]], samples=1, seed=0)
