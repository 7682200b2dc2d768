"""TRL's RLOOTrainer with our rollouts, scores, KL, advantages and losses.

One batch of the trainer is one update: P prompts with G answers each. A prompt and its answers stay in one packed row, so that a
row has all that its advantages need: the forward pass that is differentiated also gives the log-probabilities of the
KL penalty, and no further pass of the policy is made. The reference is the base without its adapter, the adapter that the
policy started from or, where all weights are trained, a frozen copy of the base. An algorithm of several epochs goes over the same
rows again, with an optimizer step after each; the last step is transformers' own. Where there is a critic, all rows are measured before the first loss, since advantages are whitened
over the update; its pass over a row follows the policy's, and the two are clipped and stepped apart.

Replaced: sampler, rollouts, scoring, loss, log and checkpoints. Theirs: the loop, optimizer, schedule, launching.

Shapes: P prompts of a row, G answers each, N = P x G answers, M tokens of all answers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import SequentialSampler
from transformers.trainer_callback import PrinterCallback, TrainerCallback
from trl import RLOOConfig, RLOOTrainer

from policy.algorithms import ALGORITHMS
from policy.critic import give_own_group, split_parameters, token_values
from policy.kl_control import KLControl
from policy.rewards.protocol import Rewards
from policy.rewards.shaping import Shaping
from policy.rollouts.overlap import OverlappedRollouts
from policy.rollouts.probe import EngineProbe
from policy.rollouts.protocol import RolloutEngine, seed_of
from policy.update.experience import HELD_OUT, Answers, Experience, sample, score_answers
from policy.update.gathering import gather_probes, gather_statistics, gather_times
from policy.update.passes import idle_passes, measuring_passes, reference_logps
from policy.update.rows import Row, pack_groups, token_logps
from policy.update.statistics import (
    UpdateStatistics,
    check_update,
    diverged,
    gold_scores,
    order_agreement,
    spread_share,
    start_bound,
)
from policy.update.step import Update
from rlhf.config.algorithm import AlgorithmConfig
from rlhf.config.rewards import ShapingConfig
from rlhf.config.rollouts import ImportanceConfig, RolloutConfig
from rlhf.core.errors import DivergenceError
from rlhf.core.formats import compute_dtype
from rlhf.core.records import Prompt
from rlhf.distributed import processes
from rlhf.distributed.sharding import finish_kernels, is_fsdp, is_requested, missing_passes, reshard
from rlhf.distributed.trainer_mixin import DistributedTrainerMixin, single_device, trainer_settings
from rlhf.kernels import adapter_layers
from rlhf.kernels.packing_check import one_per_row
from rlhf.models.chat import Chat
from rlhf.models.forwards import enable_packed_logprobs
from rlhf.models.loading import CRITIC, base_of, role, upcast_trainable
from rlhf.runs.checkpoints import SafeCheckpoints, trainable_state
from rlhf.runs.gpu_memory import phase


@dataclass(frozen=True)
class Roles:
    """What is attached to the policy's base, or to its frozen copy, besides the policy."""

    rewards: Rewards
    held_out: Rewards | None = None
    held_out_every: int = 1
    frozen: Any | None = None
    """The frozen copy, where all weights are trained: adapters of reward models may have wrapped it."""


Record = Callable[[int, Mapping[str, float], Sequence[Mapping[str, Any]]], None]
"""Receives an update's number, its figures and its answers."""


class PolicyTrainer(DistributedTrainerMixin, SafeCheckpoints, RLOOTrainer):
    """The loop around an algorithm.

    Args:
        model: the causal base; TRL gives it the policy's adapter.
        arguments: from `trainer_arguments`.
        adapter: PEFT's description of the policy's adapter; None where the base's own weights are trained.
        frozen: then a copy of the base that stays as it is.
        attach: attaches the other roles, once TRL has made the policy's adapter.
        chat: the door to token ids.
        prompts: what to train on.
        order: which prompt each draw takes; its length is updates x prompts an update.
        engine: samples answers.
        ahead: samples the next update's answers during this one; None samples them when they are needed.
        rollouts, algorithm, shaping: the config's sections.
        tokens_per_batch: token budget of a packed row.
        record: receives figures and answers.
        callbacks: the user's own.
    """

    def __init__(
        self,
        model: Any,
        arguments: RLOOConfig,
        adapter: Any | None,
        chat: Chat,
        *,
        frozen: Any | None = None,
        attach: Callable[[Any, Any | None], Roles],
        prompts: Sequence[Prompt],
        order: Sequence[int],
        engine: RolloutEngine,
        ahead: OverlappedRollouts | None,
        rollouts: RolloutConfig,
        algorithm: AlgorithmConfig,
        shaping: ShapingConfig,
        tokens_per_batch: int,
        record: Record,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        self.chat, self.prompts, self.order, self.engine, self.ahead = chat, prompts, order, engine, ahead
        self.rollouts, self.kl = rollouts, algorithm.kl
        self.algorithm = ALGORITHMS[algorithm.name](algorithm)
        self.critic = algorithm.critic
        self.kl_control = KLControl(
            self.kl.coefficient, target=self.kl.target, horizon=self.kl.horizon, budget=self.kl.budget
        )
        self.tokens_per_batch, self.record = tokens_per_batch, record
        self.figures: dict[str, float] = {}
        self.samples: list[Mapping[str, Any]] = []
        self.given: Sequence[float] = ()
        draws = [place for place in order for _ in range(rollouts.samples_per_prompt)]
        # With a critic each pass trains one of the two, and DDP must not wait for the other.
        arguments.ddp_find_unused_parameters = algorithm.critic is not None
        super().__init__(
            model=model,
            reward_funcs=_scored_by_scorer,
            args=arguments,
            train_dataset=Dataset.from_dict({"prompt": [str(place) for place in draws]}),
            processing_class=chat.trainers_tokenizer(),
            peft_config=adapter,
            callbacks=list(callbacks),
        )
        self.remove_callback(PrinterCallback)
        for trunk in {base_of(model) for model in (self.model, frozen) if model is not None}:
            enable_packed_logprobs(trunk, rollouts.temperature)
        upcast_trainable(self.model)
        adapter_layers.enable(self.model)
        if frozen is not None and not is_requested():  # a model to be sharded is moved shard by shard
            frozen.to(self.args.device)
        self.shaping = Shaping(
            shaping, lambda own: self.accelerator.reduce(own.to(self.args.device), "sum").cpu()
        )
        roles = attach(self.model, frozen)
        self.frozen = roles.frozen
        self.rewards, self.held_out = roles.rewards, roles.held_out
        self.held_out_every = roles.held_out_every

    def _prepare_inputs(self, generation_batch: list[dict[str, str]]) -> Experience:
        """Sample and score the answers of one update."""
        prompts = [self.prompts[int(row["prompt"])] for row in generation_batch[:: self.num_generations]]
        held_out = None if self.state.global_step % self.held_out_every else self.held_out
        answers = self._sample(prompts)
        with phase("scoring"):
            return score_answers(answers, prompts, self.rewards, held_out)

    @phase("rollouts")
    def _sample(self, prompts: Sequence[Prompt]) -> Answers:
        """Answers by the policy as it is or, where they are made ahead, as it was an update before."""
        step, samples, ids = self.state.global_step, self.num_generations, self._prompt_ids(prompts)
        seed = self._sampling_seed(step)
        if self.ahead is None:
            return sample(self.model, self.engine, ids, samples=samples, seed=seed)
        first = ((step + 1) * self.accelerator.num_processes + self.accelerator.process_index) * len(prompts)
        coming = [self.prompts[place] for place in self.order[first : first + len(prompts)]]
        following = (self._prompt_ids(coming), self._sampling_seed(step + 1)) if coming else None
        return self.ahead.sample(self.model, ids, seed, following)

    def _prompt_ids(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        return [self.chat.prompt_ids(prompt.messages) for prompt in prompts]

    def _sampling_seed(self, step: int) -> int:
        return seed_of(self.args.seed, step, self.accelerator.process_index)

    @phase("update")
    def training_step(self, model: Any, inputs: Any, num_items_in_batch: object = None) -> Tensor:
        """One update: sample, score, then train on each packed row, in as many epochs as the algorithm has."""
        model.train()
        experience = self._prepare_inputs(inputs)
        started = time.perf_counter()
        rows = pack_groups(
            experience.groups,
            self.tokens_per_batch,
            self.chat.pad_id,
            self.args.device,
            one_per_row=one_per_row(base_of(self.model)),
        )
        self.given = experience.given.rewards
        shaped = self.shaping.of(experience.given, [len(r.completion_ids) for r in experience.rollouts])
        rewards_N = torch.tensor(shaped, device=self.args.device)
        update = self._update(experience, shaped)
        has_critic = self.algorithm.critic is not None
        behind = missing_passes(len(rows), model)
        if has_critic:
            self._measure(model, rows, behind, rewards_N, update)
        for epoch in range(self.algorithm.epochs):
            if epoch:
                self._step_between_epochs(model)
            if epoch == 0 and not has_critic:
                self._idle(model, rows[0], behind, reference=True)
                self._sampling_epoch(model, rows, rewards_N, update)
            else:
                self._idle(model, rows[0], behind, reference=False)
                self._epoch(model, rows, update)
        if self.ahead is not None:
            with torch.no_grad(), self.compute_loss_context_manager():
                self.ahead.compare(self.model, rows[0], update, lambda row: token_logps(model, row.packed))
            reshard(self.model)  # it is the shards that the optimizer changes
        finish_kernels()
        times = {**experience.times, "time/update": time.perf_counter() - started}
        self._finish(experience.prompts, update, times)
        return torch.tensor(self.figures["loss/policy"], device=self.args.device)

    def _update(self, experience: Experience, shaped: Sequence[float]) -> Update:
        """What the update is divided by, over all processes, and where its figures go."""
        given, rollouts = experience.given, experience.rollouts
        known = [rollout for rollout, has in zip(rollouts, given.known, strict=True) if has]
        own = torch.tensor(
            [self.algorithm.denominator(known), sum(self.algorithm.counted(known))],
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
            UpdateStatistics(
                given.rewards,
                rollouts,
                self.algorithm.epochs,
                columns=experience.columns | ({"shaped": shaped} if self.shaping.config.active else {}),
                missing=given.missing,
            ),
            EngineProbe(told.level, told.cap),
            lambda own: self.accelerator.reduce(own, "sum"),
        )

    @property
    def reference(self) -> Any:
        """The model that computes reference and rewards: the policy's own base, or the frozen copy."""
        return self.model if self.frozen is None else self.frozen

    def _reference(self, model: Any) -> tuple[Any, Any]:
        """The reference as it is called, and as its roles are switched."""
        return (model if self.frozen is None else self.frozen), self.reference

    def _gradients(self, model: Any, *, synchronise: bool) -> AbstractContextManager[Any]:
        """Gradients are added up on each process, in one piece, until an epoch's end; sharded, those of all weights are too large."""
        whole = self.frozen is not None and is_fsdp(model)
        return nullcontext() if synchronise or whole else self.accelerator.no_sync(model)

    def _measure(
        self, model: Any, rows: Sequence[Row], behind: int, rewards_N: Tensor, update: Update
    ) -> None:
        """Measure all rows as they were sampled, before the first loss: a critic's advantages need the whole update."""
        for _ in range(behind):
            with self.compute_loss_context_manager():
                measuring_passes(model, self.model, rows[0])
        measured = []
        for row in rows:
            with self.compute_loss_context_manager():
                sampled = measuring_passes(model, self.model, row)
            measured.append(update.measure(row, rewards_N[row.answers], *sampled))
        update.settle(measured)

    def _sampling_epoch(self, model: Any, rows: Sequence[Row], rewards_N: Tensor, update: Update) -> None:
        """The first epoch without a critic: the pass that is differentiated also measures its row."""
        for number, row in enumerate(rows):
            with self._gradients(model, synchronise=number == len(rows) - 1):
                with self.compute_loss_context_manager():
                    logps_M, entropy_M, answer_M = token_logps(model, row.packed)
                    reference_M = reference_logps(*self._reference(model), row)
                sampled = (logps_M.detach(), reference_M, entropy_M, answer_M)
                update.settle([update.measure(row, rewards_N[row.answers], *sampled)])
                self._backward_sum(update.loss(number, row, logps_M))

    def _epoch(self, model: Any, rows: Sequence[Row], update: Update) -> None:
        """An epoch over rows that were measured before, and over the critic's values of them."""
        for number, row in enumerate(rows):
            last = number == len(rows) - 1
            with self._gradients(model, synchronise=last):
                with self.compute_loss_context_manager():
                    logps_M, _, _ = token_logps(model, row.packed)
                self._backward_sum(update.loss(number, row, logps_M))
            if self.algorithm.critic is not None:
                with self._gradients(model, synchronise=last), role(self.model, CRITIC):
                    with self.compute_loss_context_manager():
                        values_M = token_values(model, row.packed)
                    self._backward_sum(update.value_loss(number, values_M))

    def _idle(self, model: Any, row: Row, passes: int, *, reference: bool) -> None:
        """Passes without effect, for other processes that have more rows of a sharded model."""
        for _ in range(passes):
            with self._gradients(model, synchronise=False), self.compute_loss_context_manager():
                idle_passes(
                    model,
                    self.model,
                    row,
                    self.backward,
                    reference=self._reference(model) if reference else None,
                    has_critic=self.algorithm.critic is not None,
                )

    def _backward_sum(self, loss: Tensor) -> None:
        """Backward of a row's share: processes average gradients, and shares are to be summed."""
        self.backward(loss * self.accelerator.num_processes)

    def diverged(self, norm: float) -> DivergenceError:
        """The error for a gradient whose norm is not finite, which names rewards that are too large."""
        return diverged(f"The gradient's norm is {norm}", self.state.global_step + 1, self.given)

    def _step_between_epochs(self, model: Any) -> None:
        """What transformers does after the last epoch; the learning rate changes by update."""
        self._clip_grad_norm(model)
        self.optimizer.step()
        model.zero_grad()

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Theirs, with a group and a learning rate for the critic."""
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if self.critic is not None:
            trained = self.model if model is None else model
            give_own_group(optimizer, trained, self.critic.learning_rate, self.args.weight_decay)
        return optimizer

    def _clip_grad_norm(self, model: Any) -> Any:
        """Theirs; policy and critic each by its own norm, the policy's is logged. In the critic's warm-up the policy has none."""
        if self.critic is None:
            return super()._clip_grad_norm(model)
        policy, critic = split_parameters(model)
        skipped = policy if self.state.global_step < self.critic.warmup_steps else []
        return self.clip_by_group(model, (critic, policy), skipped)[1]

    def _finish(self, prompts: Sequence[Prompt], update: Update, times: Mapping[str, float]) -> None:
        """Check what must hold, and keep the update's figures and answers for the log."""
        statistics, probe = gather_statistics(update.statistics), gather_probes(update.probe)
        number, times = self.state.global_step + 1, gather_times(times)
        prompts = [prompt for own in processes.all_gather(list(prompts)) for prompt in own]
        figures = statistics.figures(update.coefficient) | update.own_figures | probe.figures()
        bound = start_bound(compute_dtype(base_of(self.model)), on_gpu=self.args.device.type == "cuda")
        check_update(number, figures, bound, rewards=statistics.rewards)
        figures["reward/groups_with_spread"] = spread_share(statistics.rewards, self.num_generations)
        if (watched := statistics.columns.get(HELD_OUT)) is not None:
            alike = order_agreement(statistics.rewards, watched, self.num_generations)
            figures.update({} if alike is None else {"reward/held_out_agreement": alike})
        probe.check(self.rollouts.logprob_bound, f"at update {number}")
        golds = gold_scores(prompts, statistics.rollouts)
        if known := [gold for gold in golds if gold is not None]:
            figures["gold/mean"] = sum(known) / len(known)
        self._observe(number, figures, len(golds))
        step_time = sum(value for name, value in times.items() if name.startswith("time/"))
        self.figures = {**figures, **times, "time/step": step_time}
        self.samples = statistics.samples(number, prompts, golds)

    def _observe(self, update: int, figures: Mapping[str, float], answers: int) -> None:
        """Steer the KL's coefficient, and end the run where its budget is spent; all processes alike."""
        self.kl_control.observe(
            update,
            charged=figures["kl/charged"],
            kl=figures["kl/sum"],
            reward=figures["reward/mean"],
            answers=answers,
            weights=lambda: trainable_state(self.accelerator.unwrap_model(self.model)),
        )
        if self.kl_control.stopped is not None:
            self.control.should_training_stop = True

    def _save_checkpoint(self, model: Any, trial: object) -> None:
        if self.kl_control.stopped is None:  # a resumed run goes back to before the end, and ends again
            if self.ahead is not None:
                self.ahead.hold()
            super()._save_checkpoint(model, trial)

    def save_extra_state(self, folder: Path) -> None:
        """What a checkpoint holds besides weights, moments and generators."""
        for part in self._remembered():
            part.save(folder)

    def load_extra_state(self, folder: Path) -> None:
        """Take up what `save_extra_state` wrote."""
        for part in self._remembered():
            part.load(folder)

    def _remembered(self) -> list[Any]:
        return [self.kl_control, self.shaping, *([] if self.ahead is None else [self.ahead])]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Pass an update's figures on; transformers' own closing summary is left out."""
        if "loss" in logs:
            optimizer = {"optimizer/lr": logs["learning_rate"], "optimizer/grad_norm": logs["grad_norm"]}
            figures = {**self.figures, **optimizer}
            self.record(self.state.global_step, figures, self.samples)
            self.notify(figures)

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Any:
        return SequentialSampler(self.train_dataset)


def _scored_by_scorer(*_: object, **__: object) -> list[float]:
    """TRL asks for a reward function; rewards come from `Rewards` instead, in `_prepare_inputs`."""
    raise NotImplementedError


def trainer_arguments(rollouts: RolloutConfig, **settings: Any) -> RLOOConfig:
    """The run's settings in TRL's words; `settings` are those of `trainer_settings`."""
    arguments = RLOOConfig(
        **trainer_settings(batch_size=rollouts.prompts_per_step * rollouts.samples_per_prompt, **settings),
        num_generations=rollouts.samples_per_prompt,
        steps_per_generation=1,
        max_completion_length=rollouts.max_new_tokens,
        temperature=rollouts.temperature,
        shuffle_dataset=False,
        beta=0.0,  # the KL and its reference are ours
    )
    return single_device(arguments)
