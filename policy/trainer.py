"""TRL's RLOOTrainer with our rollouts, scores, KL, advantages and losses.

One batch of the trainer is one update: P prompts with G answers each. A prompt and its answers stay in one packed row, so that a
row has all that its advantages need: the forward pass that is differentiated also gives the log-probabilities of the
KL penalty, and no further pass of the policy is made. The reference is the base without its adapter. An algorithm of
several epochs goes over the same rows again, with an optimizer step after each; the last step is transformers' own.

Replaced: sampler, rollouts, scoring, loss, log and checkpoints. Theirs: the loop, optimizer, schedule, launching.

Shapes: P prompts of a row, G answers each, N = P x G answers, M tokens of all answers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import SequentialSampler
from transformers.trainer_callback import PrinterCallback
from trl import RLOOConfig, RLOOTrainer

from policy.algorithms.protocol import Algorithm, Measured
from policy.algorithms.reinforce import Reinforce
from policy.algorithms.rloo import RLOO
from policy.experience import Experience, gather
from policy.kl_control import KLControl
from policy.probe import EngineProbe
from policy.rewards.protocol import Rewards
from policy.rollouts.protocol import RolloutEngine, seed_of
from policy.rows import pack_groups, token_logps
from policy.statistics import UpdateStatistics
from policy.update import Update
from rlhf.config.algorithm import AlgorithmConfig
from rlhf.config.rollouts import ImportanceConfig, RolloutConfig
from rlhf.core.chat import Chat
from rlhf.core.checkpoints import SafeCheckpoints, trainable_state
from rlhf.core.errors import DivergenceError
from rlhf.core.models import enable_packed_logprobs, float32_trainable, role
from rlhf.core.packing import PackedBatch
from rlhf.core.records import Prompt
from rlhf.core.training import trainer_settings
from rlhf.data.checks import gold_score

Record = Callable[[int, Mapping[str, float], Sequence[Mapping[str, Any]]], None]
"""Receives an update's number, its figures and its answers."""

ALGORITHMS: Mapping[str, Callable[[AlgorithmConfig], Algorithm]] = {
    "reinforce": Reinforce.of,
    "rloo": RLOO.of,
}


class PolicyTrainer(SafeCheckpoints, RLOOTrainer):
    """The loop around an algorithm.

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

    rewards: Rewards  # given by the recipe, once TRL has made the policy's adapter

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
        self.rollouts, self.kl = rollouts, algorithm.kl
        self.algorithm = ALGORITHMS[algorithm.name](algorithm)
        self.kl_control = KLControl(
            self.kl.coefficient, target=self.kl.target, horizon=self.kl.horizon, budget=self.kl.budget
        )
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

    def _prepare_inputs(self, generation_batch: list[dict[str, str]]) -> Experience:
        """Sample and score the answers of one update."""
        return gather(
            self.model,
            self.engine,
            self.rewards,
            self.chat,
            [self.prompts[int(row["prompt"])] for row in generation_batch[:: self.num_generations]],
            samples=self.num_generations,
            seed=seed_of(self.args.seed, self.state.global_step, self.accelerator.process_index),
        )

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: object = None) -> Tensor:
        """One update: sample, score, then forward and backward over each packed row, as often as the algorithm says."""
        model.train()
        experience = self._prepare_inputs(inputs)
        started = time.perf_counter()
        rows = pack_groups(experience.groups, self.tokens_per_batch, self.chat.pad_id)
        rewards_N = torch.tensor(experience.rewards, device=self.args.device)
        update = self._update(experience)
        measured: list[tuple[Measured, Tensor]] = []
        for epoch in range(self.algorithm.epochs):
            if epoch:
                self._step_between_epochs(model)
            for number, row in enumerate(rows):
                packed = row.packed.to(self.args.device)
                reference_M = self._reference(model, packed) if epoch == 0 else None
                synchronise = number == len(rows) - 1
                with nullcontext() if synchronise else self.accelerator.no_sync(model):
                    with self.compute_loss_context_manager():
                        logps_M, entropy_M, answer_M = token_logps(model, packed)
                    if reference_M is not None:
                        sampled = (logps_M.detach(), reference_M, entropy_M, answer_M)
                        measured.append(update.measure(row, rewards_N[row.answers], *sampled))
                    loss = update.loss(logps_M, row.rollouts, *measured[number])
                    self.accelerator.backward(loss * self.accelerator.num_processes)
        times = {**experience.times, "time/update": time.perf_counter() - started}
        self._finish(experience.prompts, update, times)
        return torch.tensor(self.figures["loss/policy"], device=self.args.device)

    def _update(self, experience: Experience) -> Update:
        """What the update is divided by, over all processes, and where its figures go."""
        rollouts = experience.rollouts
        own = torch.tensor(
            [self.algorithm.denominator(rollouts), sum(self.algorithm.counted(rollouts))],
            device=self.args.device,
        )
        denominator, counted = self.accelerator.reduce(own, "sum").tolist()
        importance = self.rollouts.importance_sampling
        told = importance or ImportanceConfig()
        return Update(
            self.algorithm,
            self.kl,
            self.kl_control.coefficient,
            importance,
            self.num_generations,
            max(denominator, 1.0),  # where nothing counts there is nothing to divide
            max(counted, 1.0),
            UpdateStatistics(experience.rewards, rollouts, self.algorithm.epochs),
            EngineProbe(told.level, told.cap),
        )

    def _reference(self, model: Any, packed: PackedBatch) -> Tensor:
        with torch.no_grad(), role(self.model, None), self.compute_loss_context_manager():
            return token_logps(model, packed)[0]

    def _step_between_epochs(self, model: Any) -> None:
        """What transformers does after the last epoch; the learning rate changes by update."""
        self.accelerator.clip_grad_norm_(model.parameters(), self.args.max_grad_norm)
        self.optimizer.step()
        model.zero_grad()

    def _finish(self, prompts: Sequence[Prompt], update: Update, times: Mapping[str, float]) -> None:
        """Check what must hold, and keep the update's figures and answers for the log."""
        statistics, probe, number = update.statistics, update.probe, self.state.global_step + 1
        figures = statistics.figures(update.coefficient) | probe.figures()
        check_update(number, figures)
        probe.check(self.rollouts.logprob_bound, f"at update {number}")
        golds = [
            None if prompt.check is None else gold_score(prompt.check, rollout.text)
            for prompt, rollout in zip(prompts, statistics.rollouts, strict=True)
        ]
        known = [gold for gold in golds if gold is not None]
        if known:
            figures["gold/mean"] = sum(known) / len(known)
        self._observe(number, figures, len(golds))
        step_time = sum(value for name, value in times.items() if name.startswith("time/"))
        self.figures = {**figures, **times, "time/step": step_time}
        self.samples = statistics.samples(number, prompts, golds)

    def _observe(self, update: int, figures: Mapping[str, float], answers: int) -> None:
        """Steer the KL's coefficient, and end the run where its budget is spent; all processes alike."""
        own = torch.tensor(
            [figures[name] for name in ("kl/charged", "kl/sum", "reward/mean")], dtype=torch.float64
        )
        charged, kl, reward = self.accelerator.reduce(own.to(self.args.device), "mean").tolist()
        self.kl_control.observe(
            update,
            charged=charged,
            kl=kl,
            reward=reward,
            answers=answers * self.accelerator.num_processes,
            weights=lambda: trainable_state(self.accelerator.unwrap_model(self.model)),
        )
        if self.kl_control.stopped is not None:
            self.control.should_training_stop = True

    def _save_checkpoint(self, model: Any, trial: object) -> None:
        if self.kl_control.stopped is None:  # a resumed run goes back to before the end, and ends again
            super()._save_checkpoint(model, trial)

    def save_own(self, folder: Path) -> None:
        """What a checkpoint holds besides weights, moments and generators."""
        self.kl_control.save(folder)

    def load_own(self, folder: Path) -> None:
        """Take up what `save_own` wrote."""
        self.kl_control.load(folder)

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


def check_update(number: int, figures: Mapping[str, float]) -> None:
    """Make sure that the loss is a number, and that the policy starts as the reference.

    Raises:
        DivergenceError: one of them does not hold.
    """
    for name in ("loss/policy", "loss/kl"):
        if not math.isfinite(figures.get(name, 0.0)):
            raise DivergenceError(
                f"The {name.removeprefix('loss/')} loss is {figures[name]} at update {number}.",
                fix="lower optimizer.learning_rate; samples.jsonl holds the answers of the updates before",
            )
    if number == 1 and not figures["kl/abs_mean"] <= 1e-4:
        raise DivergenceError(
            f"Before the first update the policy is not the reference: mean |log-ratio| is {figures['kl/abs_mean']:.2g}.",
            allowed="0: a fresh adapter changes nothing",
            fix="start from a fresh adapter",
        )


def _scored_by_scorer(*_: object, **__: object) -> list[float]:
    """TRL asks for a reward function; rewards come from `Rewards` instead, in `_prepare_inputs`."""
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
