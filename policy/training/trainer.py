"""TRL's RLOOTrainer with this project's rollouts, rewards, KL, advantages and losses.

One batch of the trainer is one update: P prompts with G answers each. A prompt and its answers stay in one
packed row, so that a micro-batch holds all that its advantages need, and the pass that is differentiated also
gives the log-probabilities of the KL penalty. The reference is the base without its adapter, the adapter that
the policy started from or, where all weights are trained, a frozen copy of the base. With a critic, policy
and critic are clipped and stepped apart.

Replaced in TRL's trainer: sampler, rollouts, scoring, loss, log and checkpoints. Kept: loop, optimizer,
schedule, launching.

Shapes: N = P x G answers, M tokens of all answers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers.trainer_callback import TrainerCallback
from trl import RLOOConfig, RLOOTrainer

from policy.algorithms import ALGORITHMS
from policy.rewards.shaping import Shaping
from policy.rollouts.overlap import OverlappedRollouts
from policy.rollouts.probe import EngineProbe
from policy.rollouts.protocol import RolloutEngine, seed_of
from policy.training.epochs import UpdateEpochs
from policy.training.kl_control import KLControl
from policy.training.roles import Roles
from policy.update.advantages import flat_groups, skip_flat_groups
from policy.update.forward import pack_groups, token_logps
from policy.update.gathering import gather_probes, gather_statistics, reduce_figures
from policy.update.per_token import with_tokens
from policy.update.sampling import HELD_OUT, Experience, RolloutBatch, sample_rollouts, score_rollouts
from policy.update.statistics import UpdateStatistics, gold_scores, memory_figures, order_agreement
from policy.update.step import Update, check_update, divergence_error, start_bound
from rlhf.config.algorithm import AlgorithmConfig
from rlhf.config.rewards import ShapingConfig
from rlhf.config.rollouts import ImportanceConfig, RolloutConfig
from rlhf.core.errors import DivergenceError
from rlhf.core.formats import compute_dtype
from rlhf.core.records import Prompt, Rollout
from rlhf.distributed import processes
from rlhf.distributed.sharding import finish_kernels, is_requested, reshard
from rlhf.kernels import adapter_layers
from rlhf.kernels.packing_check import one_per_row
from rlhf.models.chat import Chat
from rlhf.models.forwards import enable_packed_logprobs
from rlhf.models.loading import base_of, upcast_trainable
from rlhf.report.verdict import counted_remark
from rlhf.runs.checkpoints import SafeCheckpoints, trainable_state
from rlhf.runs.gpu_memory import phase
from rlhf.tracking.recording import LogPolicyUpdate
from rlhf.training.arguments import single_device, trainer_settings


class PolicyTrainer(UpdateEpochs, SafeCheckpoints, RLOOTrainer):
    """The training loop around an algorithm.

    Args:
        model: the causal base; TRL adds the policy's adapter.
        arguments: from `trainer_arguments`.
        adapter: LoraConfig of the policy's adapter; None where all weights of the base are trained.
        chat: tokenizer and chat template.
        frozen: a frozen copy of the base, where all weights are trained.
        attach: attaches the other roles, after TRL has added the policy's adapter.
        prompts: the training prompts.
        order: index of each drawn prompt; updates x prompts per update of them.
        engine: samples answers.
        overlap: samples the next update's answers during this one; None samples them when they are needed.
        rollouts, algorithm, shaping: sections of the config.
        tokens_per_batch: token budget of a micro-batch.
        record: receives figures and answers of each update.
        callbacks: transformers callbacks of the user.
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
        overlap: OverlappedRollouts | None,
        rollouts: RolloutConfig,
        algorithm: AlgorithmConfig,
        shaping: ShapingConfig,
        tokens_per_batch: int,
        record: LogPolicyUpdate,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        self.chat, self.prompts, self.order = chat, prompts, order
        self.engine, self.overlap = engine, overlap
        self.rollouts, self.kl = rollouts, algorithm.kl
        self.settings = algorithm
        self.algorithm = ALGORITHMS[algorithm.name](algorithm)
        self.critic = algorithm.critic
        self.kl_control = KLControl(
            self.kl.coefficient, target=self.kl.target, horizon=self.kl.horizon, budget=self.kl.budget
        )
        self.tokens_per_batch, self.record = tokens_per_batch, record
        self.figures: dict[str, float] = {}
        self.samples: list[Mapping[str, Any]] = []
        self.raw_rewards: Sequence[float] = ()
        draws = [index for index in order for _ in range(rollouts.samples_per_prompt)]
        # With a critic each pass trains one of the two, and DDP must not wait for the other.
        arguments.ddp_find_unused_parameters = algorithm.critic is not None
        super().__init__(
            model=model,
            reward_funcs=_unused_reward,
            args=arguments,
            train_dataset=Dataset.from_dict({"prompt": [str(index) for index in draws]}),
            processing_class=chat.trainers_tokenizer(),
            peft_config=adapter,
            callbacks=list(callbacks),
        )
        for trunk in {base_of(model) for model in (self.model, frozen) if model is not None}:
            enable_packed_logprobs(trunk, rollouts.temperature)
        upcast_trainable(self.model)
        adapter_layers.enable(self.model)
        if frozen is not None and not is_requested():  # a model to be sharded is moved shard by shard
            frozen.to(self.args.device)
        self.shaping = Shaping(
            shaping, lambda local: self.accelerator.reduce(local.to(self.args.device), "sum").cpu()
        )
        roles = attach(self.model, frozen)
        self.frozen = roles.frozen
        self.rewards, self.held_out = roles.rewards, roles.held_out
        self.held_out_every = roles.held_out_every

    def _prepare_inputs(self, generation_batch: list[dict[str, str]]) -> Experience:
        """Sample and score the answers of one update."""
        prompts = [self.prompts[int(row["prompt"])] for row in generation_batch[:: self.num_generations]]
        held_out = None if self.state.global_step % self.held_out_every else self.held_out
        batch = self._sample(prompts)
        with phase("scoring"):
            return score_rollouts(batch, prompts, self.rewards, held_out)

    @phase("rollouts")
    def _sample(self, prompts: Sequence[Prompt]) -> RolloutBatch:
        """Answers of the current policy or, with overlap, of the policy one update ago."""
        step, samples, ids = self.state.global_step, self.num_generations, self._prompt_ids(prompts)
        seed = self._sampling_seed(step)
        if self.overlap is None:
            return sample_rollouts(self.model, self.engine, ids, samples=samples, seed=seed)
        start = ((step + 1) * self.accelerator.num_processes + self.accelerator.process_index) * len(prompts)
        next_prompts = [self.prompts[index] for index in self.order[start : start + len(prompts)]]
        following = (self._prompt_ids(next_prompts), self._sampling_seed(step + 1)) if next_prompts else None
        return self.overlap.sample(self.model, ids, seed, following)

    def _prompt_ids(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        return [self.chat.prompt_ids(prompt.messages) for prompt in prompts]

    def _sampling_seed(self, step: int) -> int:
        return seed_of(self.args.seed, step, self.accelerator.process_index)

    @phase("update")
    def training_step(self, model: Any, inputs: Any, num_items_in_batch: object = None) -> Tensor:
        """One update: sample, score, shape, then train on each micro-batch in as many epochs as the algorithm
        has."""
        model.train()
        experience = self._prepare_inputs(inputs)
        waited = processes.wait_for_all()
        started = time.perf_counter()
        self.raw_rewards = experience.result.rewards
        lengths = [len(rollout.completion_ids) for rollout in experience.rollouts]
        shaped = self.shaping.of(experience.result, lengths)
        rewards_N, skipped = torch.tensor(shaped), {}
        if self.settings.flat_groups == "skip":
            flat_P = self._flat_groups(shaped, experience.rollouts)
            rewards_N = skip_flat_groups(rewards_N, flat_P)
            skipped = {"reward/groups_skipped": float(flat_P.sum())}
        micro_batches = pack_groups(
            experience.groups,
            self.tokens_per_batch,
            self.chat.pad_id,
            self.args.device,
            one_per_row=one_per_row(base_of(self.model)),
        )
        update, counted_share = self._new_update(experience, shaped, ~torch.isnan(rewards_N))
        self.run_epochs(model, micro_batches, rewards_N, update)
        if self.overlap is not None:
            with torch.no_grad(), self.compute_loss_context_manager():
                self.overlap.compare(
                    self.model, micro_batches[0], update, lambda batch: token_logps(model, batch.packed)
                )
            reshard(self.model)  # the optimizer changes the shards
        finish_kernels()
        times = {**experience.times, "time/update": time.perf_counter() - started}
        # Of this rank, waiting for others included: the maxima of the phases may be of different ranks.
        step = waited + sum(value for name, value in times.items() if name.startswith("time/"))
        figures = {"reward/counted_share": counted_share, "time/step": step, **memory_figures()}
        self._finish(experience.prompts, update, {**times, **skipped, **figures})
        return torch.tensor(self.figures["loss/policy"], device=self.args.device)

    def _new_update(
        self, experience: Experience, shaped: Sequence[float], takes_part_N: Tensor
    ) -> tuple[Update, float]:
        """The update with its denominators over all ranks, and the share of all answers that are counted.

        Args:
            takes_part_N: mask of the answers with a reward, without those of skipped groups.
        """
        result, rollouts = experience.result, experience.rollouts
        training_on = [rollout for rollout, mask in zip(rollouts, takes_part_N.tolist(), strict=True) if mask]
        local = torch.tensor(
            [self.algorithm.denominator(training_on), sum(self.algorithm.counted(training_on))],
            device=self.args.device,
        )
        denominator, counted = self.accelerator.reduce(local, "sum").tolist()
        importance = self.rollouts.importance_sampling
        logged = importance or ImportanceConfig()
        update = Update(
            self.algorithm,
            self.kl,
            self.kl_control.coefficient,
            importance,
            self.num_generations,
            max(denominator, 1.0),  # 0 where no answer takes part: every loss term is 0 then
            max(counted, 1.0),
            UpdateStatistics(
                result.rewards,
                rollouts,
                self.algorithm.epochs,
                columns=experience.columns | ({"shaped": shaped} if self.shaping.config.active else {}),
                missing=result.missing,
            ),
            EngineProbe(logged.level, logged.cap),
            lambda tensor: self.accelerator.reduce(tensor, "sum"),
        )
        return update, counted / (len(rollouts) * self.accelerator.num_processes)

    def diverged(self, norm: float) -> DivergenceError:
        """The error for a gradient whose norm is not finite, which names rewards that are too large."""
        return divergence_error(
            f"The gradient's norm is {norm}", self.state.global_step + 1, self.raw_rewards
        )

    def _flat_groups(self, shaped: Sequence[float], rollouts: Sequence[Rollout]) -> Tensor:
        """flat_P, see `flat_groups`."""
        return flat_groups(
            torch.tensor(shaped),
            torch.tensor([rollout.finished for rollout in rollouts]),
            self.num_generations,
            self.settings.unfinished,
            self.settings.unfinished_reward,
        )

    def _finish(self, prompts: Sequence[Prompt], update: Update, local: Mapping[str, float]) -> None:
        """Check the update, and keep its figures and answers for the log.

        Args:
            local: times and other figures of this rank.
        """
        statistics, probe = gather_statistics(update.statistics), gather_probes(update.probe)
        number, measured = self.state.global_step + 1, reduce_figures(local)
        prompts = [prompt for rank_prompts in processes.all_gather(list(prompts)) for prompt in rank_prompts]
        figures = statistics.figures(update.coefficient) | update.figures() | probe.figures()
        bound = start_bound(compute_dtype(base_of(self.model)), on_gpu=self.args.device.type == "cuda")
        check_update(number, figures, bound, rewards=statistics.rewards)
        shaped = statistics.columns.get("shaped", statistics.rewards)
        figures["reward/groups_with_spread"] = 1 - float(
            self._flat_groups(shaped, statistics.rollouts).float().mean()
        )
        if (held_out := statistics.columns.get(HELD_OUT)) is not None:
            agreement = order_agreement(statistics.rewards, held_out, self.num_generations)
            figures.update({} if agreement is None else {"reward/held_out_agreement": agreement})
        probe.check(self.rollouts.logprob_bound, f"at update {number}")
        golds = gold_scores(prompts, statistics.rollouts)
        if known := [gold for gold in golds if gold is not None]:
            figures["gold/mean"] = sum(known) / len(known)
        self._observe(number, figures, len(golds))
        self.figures = {**figures, **measured}
        if number == 1:
            for line in counted_remark([self.figures]):
                print(f"Warning: {line}", flush=True)
        rows = statistics.samples(number, prompts, golds)
        self.samples = with_tokens(rows, statistics.rollouts, statistics.tokens, self.chat.pieces)

    def _observe(self, update: int, figures: Mapping[str, float], answers: int) -> None:
        """Adapt the KL coefficient, and stop the run where the KL budget is exceeded.

        The same on all ranks.
        """
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
        if self.kl_control.stopped is None:  # a resumed run repeats the updates since, and stops again
            if self.overlap is not None:
                self.overlap.collect()
            super()._save_checkpoint(model, trial)

    def save_extra_state(self, folder: Path) -> None:
        """Write the trainer's state beside weights, optimizer and generators of a checkpoint."""
        for stateful in self._stateful():
            stateful.save(folder)

    def load_extra_state(self, folder: Path) -> None:
        """Read what `save_extra_state` wrote."""
        for stateful in self._stateful():
            stateful.load(folder)

    def _stateful(self) -> list[Any]:
        return [self.kl_control, self.shaping, *([] if self.overlap is None else [self.overlap])]

    def record_update(self, step: int, figures: Mapping[str, float | str]) -> None:
        """Pass an update's figures and its answers to `record`."""
        self.record(step, figures, self.samples)


def _unused_reward(*_: object, **__: object) -> list[float]:
    """TRL requires a reward function; here `_prepare_inputs` computes rewards."""
    raise NotImplementedError


def trainer_arguments(rollouts: RolloutConfig, **settings: Any) -> RLOOConfig:
    """The run's settings as an RLOOConfig; `settings` are those of `trainer_settings`."""
    arguments = RLOOConfig(
        **trainer_settings(batch_size=rollouts.answers, **settings),
        num_generations=rollouts.samples_per_prompt,
        steps_per_generation=1,
        max_completion_length=rollouts.max_new_tokens,
        temperature=rollouts.temperature,
        shuffle_dataset=False,
        beta=0.0,  # KL and reference are computed here
    )
    return single_device(arguments)
