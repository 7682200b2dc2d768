"""TRL's RLOOTrainer with our rollouts, scores, KL and advantages.

One batch of the trainer is one update: P prompts with G answers each. A prompt and its answers stay in one packed row, so that a
row has all that its advantages need: the forward pass that is differentiated also gives the log-probabilities of the
KL penalty, and no further pass of the policy is made. The reference is the base without its adapter.

Shapes: P prompts of a row, G answers each, N = P x G answers, M tokens of all answers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import SequentialSampler
from transformers.trainer_callback import PrinterCallback
from trl import RLOOConfig, RLOOTrainer

from policy.advantages import leave_one_out
from policy.kl import kl_of_answers
from policy.losses import reinforce
from policy.rollouts.protocol import RolloutEngine, seed_of
from policy.statistics import UpdateStatistics
from reward.scorer import Scorer
from rlhf.config.policy import AlgorithmConfig, RolloutConfig
from rlhf.core.chat import Chat
from rlhf.core.checkpoints import SafeCheckpoints
from rlhf.core.errors import DivergenceError, EngineError
from rlhf.core.models import enable_packed_logprobs, float32_trainable, packed_inputs, role
from rlhf.core.packing import PackedBatch, Tree, pack
from rlhf.core.records import Message, Prompt, Rollout
from rlhf.core.training import trainer_settings
from rlhf.data.checks import gold_score

Record = Callable[[int, Mapping[str, float], Sequence[Mapping[str, Any]]], None]
"""Receives an update's number, its figures and its answers."""


@dataclass(frozen=True)
class Row:
    """A packed row of whole groups, with what is needed to turn rewards into a loss."""

    packed: PackedBatch
    answers: list[int]
    """Places in the update's flat list of answers, in the row's order."""
    rollouts: list[Rollout]


def answer_tree(group: Sequence[Rollout]) -> Tree:
    """A prompt and its answers; the trunk ends one token early, so that each branch predicts its own first token."""
    prompt = group[0].prompt_ids
    return Tree(prompt[:-1], tuple((prompt[-1], *rollout.completion_ids) for rollout in group))


def pack_groups(groups: Sequence[Sequence[Rollout]], budget: int, pad_id: int) -> list[Row]:
    """Groups laid into rows; a group is never cut."""
    first = [0]
    for group in groups:
        first.append(first[-1] + len(group))
    flat = [rollout for group in groups for rollout in group]
    rows = []
    for packed in pack([answer_tree(group) for group in groups], budget, pad_id=pad_id):
        answers = [place for index in packed.trees for place in range(first[index], first[index + 1])]
        rows.append(Row(packed, answers, [flat[place] for place in answers]))
    return rows


def token_logps(model: Any, packed: PackedBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of the answers' tokens in a packed row: (logps_M, entropy_M, answer_M).

    At the temperature `enable_packed_logprobs` was given: log-probabilities of the distribution that was sampled.
    """
    next_ids_RT = packed.next_ids_RT()
    logps_M, entropy_M = model(**packed_inputs(packed), next_ids=next_ids_RT)
    return logps_M, entropy_M, packed.branch_RT[next_ids_RT != -100]


class ReinforceTrainer(SafeCheckpoints, RLOOTrainer):
    """The REINFORCE loop.

    Args:
        model: the causal base; TRL gives it the policy's adapter.
        arguments: from `trainer_arguments`.
        adapter: PEFT's description of the policy's adapter.
        chat: the door to token ids.
        prompts: what to practise on.
        order: which prompt each draw takes; its length is updates x prompts an update.
        engine: samples answers.
        rollouts, algorithm: the config's sections.
        tokens_per_batch: token budget of a packed row.
        record: receives figures and answers.
    """

    scorer: Scorer  # hung on the base by the recipe, once TRL has made the policy's adapter

    def __init__(
        self,
        model: Any,
        arguments: RLOOConfig,
        adapter: Any,
        chat: Chat,
        *,
        prompts: Sequence[Prompt],
        order: Sequence[int],
        engine: RolloutEngine,
        rollouts: RolloutConfig,
        algorithm: AlgorithmConfig,
        tokens_per_batch: int,
        record: Record,
    ) -> None:
        self.chat, self.prompts, self.engine = chat, prompts, engine
        self.rollouts, self.algorithm = rollouts, algorithm
        self.tokens_per_batch, self.record = tokens_per_batch, record
        self.figures: dict[str, float] = {}
        self.samples: list[Mapping[str, Any]] = []
        draws = [place for place in order for _ in range(rollouts.samples_per_prompt)]
        super().__init__(
            model=model,
            reward_funcs=_scored_by_scorer,
            args=arguments,
            train_dataset=Dataset.from_dict({"prompt": [str(place) for place in draws]}),
            processing_class=chat.tokenizer,
            peft_config=adapter,
        )
        self.remove_callback(PrinterCallback)
        enable_packed_logprobs(self.model.get_base_model(), rollouts.temperature)
        float32_trainable(self.model)

    def _prepare_inputs(self, generation_batch: list[dict[str, str]]) -> dict[str, Any]:
        """Sample and score the answers of one update."""
        places = [int(row["prompt"]) for row in generation_batch[:: self.num_generations]]
        prompts = [self.prompts[place] for place in places]
        ids = [self.chat.prompt_ids(prompt.messages) for prompt in prompts]
        started = time.perf_counter()
        self.engine.sync(self.model)
        synced = time.perf_counter()
        seed = seed_of(self.args.seed, self.state.global_step, self.accelerator.process_index)
        groups = self.engine.generate(ids, samples=self.num_generations, seed=seed)
        sampled = time.perf_counter()
        flat = [(prompt, rollout) for prompt, group in zip(prompts, groups, strict=True) for rollout in group]
        conversations = [(*prompt.messages, Message("assistant", rollout.text)) for prompt, rollout in flat]
        rewards = [score.reward for score in self.scorer.score(conversations)]
        scored = time.perf_counter()
        tokens = sum(len(rollout.completion_ids) for _, rollout in flat)
        return {
            "prompts": [prompt for prompt, _ in flat],
            "groups": groups,
            "rewards": rewards,
            "times": {
                "time/sync": synced - started,
                "time/rollout": sampled - synced,
                "time/score": scored - sampled,
                "engine/tokens_per_second": tokens / (sampled - synced),
            },
        }

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: object = None) -> Tensor:
        """One update: sample, score, then one forward and backward pass over each packed row."""
        model.train()
        inputs = self._prepare_inputs(inputs)
        started = time.perf_counter()
        rows = pack_groups(inputs["groups"], self.tokens_per_batch, self.chat.pad_id)
        rewards_N = torch.tensor(inputs["rewards"], device=self.args.device)
        count = rewards_N.numel() * self.accelerator.num_processes
        statistics = UpdateStatistics(inputs["rewards"], [r for group in inputs["groups"] for r in group])
        for number, row in enumerate(rows):
            packed = row.packed.to(self.args.device)
            with torch.no_grad(), role(self.model, None), self.compute_loss_context_manager():
                reference_M, _, _ = token_logps(model, packed)
            synchronise = number == len(rows) - 1
            with nullcontext() if synchronise else self.accelerator.no_sync(model):
                with self.compute_loss_context_manager():
                    logps_M, entropy_M, answer_M = token_logps(model, packed)
                log_ratio_M = logps_M.detach() - reference_M
                penalty_N = self._penalty(log_ratio_M, answer_M, len(row.answers))
                advantages_N = self._advantages(rewards_N[row.answers], penalty_N, row.rollouts)
                loss = reinforce(logps_M, answer_M, advantages_N, self.algorithm.reduction, count)
                self.accelerator.backward(loss * self.accelerator.num_processes)
            statistics.add(
                row.answers,
                loss=loss.item(),
                advantages_N=advantages_N,
                penalty_N=penalty_N,
                log_ratio_M=log_ratio_M,
                logps_M=logps_M.detach(),
                entropy_M=entropy_M,
                answer_M=answer_M,
            )
        self._finish(inputs, statistics, {**inputs["times"], "time/update": time.perf_counter() - started})
        return torch.tensor(self.figures["loss/policy"], device=self.args.device)

    def _penalty(self, log_ratio_M: Tensor, answer_M: Tensor, answers: int) -> Tensor:
        kl = self.algorithm.kl
        return kl.coefficient * kl_of_answers(log_ratio_M, answer_M, answers, kl.estimator, kl.reduction)

    def _advantages(self, rewards_N: Tensor, penalty_N: Tensor, rollouts: Sequence[Rollout]) -> Tensor:
        """Penalised rewards against their siblings', by the rule for unfinished answers."""
        finished_N = torch.tensor([rollout.finished for rollout in rollouts], device=rewards_N.device)
        counted_N = torch.ones_like(finished_N)
        if self.algorithm.unfinished == "drop":
            counted_N = finished_N
        elif self.algorithm.unfinished == "penalty":
            rewards_N = torch.where(finished_N, rewards_N, float(self.algorithm.unfinished_reward or 0.0))
        shape = (-1, self.num_generations)
        return leave_one_out((rewards_N - penalty_N).view(shape), counted_N.view(shape)).flatten()

    def _finish(
        self, inputs: Mapping[str, Any], statistics: UpdateStatistics, times: Mapping[str, float]
    ) -> None:
        """Check what must hold, and keep the update's figures and answers for the log."""
        figures = statistics.figures()
        step = self.state.global_step
        if not math.isfinite(figures["loss/policy"]):
            raise DivergenceError(
                f"The policy loss is {figures['loss/policy']} at update {step + 1}.",
                fix="lower optimizer.learning_rate; samples.jsonl holds the answers of the updates before",
            )
        if step == 0 and figures["kl/abs_mean"] > 1e-4:
            raise DivergenceError(
                f"Before the first update the policy is not the reference: mean |log-ratio| is {figures['kl/abs_mean']:.2g}.",
                allowed="0: a fresh adapter changes nothing",
                fix="start from a fresh adapter",
            )
        difference = figures.get("engine/logprob_difference", 0.0)
        if difference > self.rollouts.logprob_bound:
            raise EngineError(
                f"Engine and trainer disagree at update {step + 1}: mean |difference of log-probabilities| is {difference:.3f}.",
                allowed=f"at most {self.rollouts.logprob_bound} (rollouts.logprob_bound)",
                fix="the adapter did not reach the engine, or base and dtype differ between the two",
            )
        golds = [
            None if prompt.check is None else gold_score(prompt.check, rollout.text)
            for prompt, rollout in zip(inputs["prompts"], statistics.rollouts, strict=True)
        ]
        known = [gold for gold in golds if gold is not None]
        if known:
            figures["gold/mean"] = sum(known) / len(known)
        self.figures = {
            **figures,
            **times,
            "time/step": sum(v for k, v in times.items() if k.startswith("time/")),
        }
        self.samples = statistics.samples(step + 1, inputs["prompts"], golds)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Pass an update's figures on; transformers' own closing summary is left out."""
        if "loss" in logs:
            optimizer = {"optimizer/lr": logs["learning_rate"], "optimizer/grad_norm": logs["grad_norm"]}
            self.record(self.state.global_step, {**self.figures, **optimizer}, self.samples)

    def floating_point_ops(self, inputs: object) -> int:
        """Not counted: transformers' estimate knows neither packing nor adapters."""
        return 0

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Any:
        return SequentialSampler(self.train_dataset)


def _scored_by_scorer(*_: object, **__: object) -> list[float]:
    """TRL asks for a reward function; rewards come from the scorer instead, in `_prepare_inputs`."""
    raise NotImplementedError


def trainer_arguments(rollouts: RolloutConfig, **settings: Any) -> RLOOConfig:
    """The run's settings in TRL's words; `settings` are those of `trainer_settings`."""
    return RLOOConfig(
        **trainer_settings(batch_size=rollouts.prompts_per_step * rollouts.samples_per_prompt, **settings),
        num_generations=rollouts.samples_per_prompt,
        steps_per_generation=1,
        max_completion_length=rollouts.max_new_tokens,
        temperature=rollouts.temperature,
        shuffle_dataset=False,
    )
