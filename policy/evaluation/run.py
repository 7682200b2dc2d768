"""The evaluation of a run: answers to the same held-out prompts, with the same seeds, before and after
training."""

from __future__ import annotations

from collections.abc import Sequence

from policy.evaluation.held_out import Answer, answer_prompts
from policy.rollouts.probe import EngineProbe
from policy.rollouts.protocol import seed_of
from policy.training.trainer import PolicyTrainer
from policy.update.gathering import gather_probes
from rlhf.config.policy import PolicyConfig
from rlhf.config.rollouts import ImportanceConfig
from rlhf.core.records import Prompt
from rlhf.distributed import processes
from rlhf.runs.gpu_memory import phase


@phase("rollouts")
def held_out_answers(
    config: PolicyConfig, trainer: PolicyTrainer, prompts: Sequence[Prompt]
) -> list[list[Answer]]:
    """Answers of the current policy to the held-out prompts.

    The prompts are sharded over ranks where there are enough.

    Raises:
        EngineError: log-probabilities of engine and trainer differ by more than rollouts.logprob_bound.
        RewardError: no answer on any rank has a reward.
    """
    samples = config.evaluation.samples
    print(f"Answering {len(prompts)} held-out prompts, {samples} times each.", flush=True)
    importance = config.rollouts.importance_sampling or ImportanceConfig()
    probe = EngineProbe(importance.level, importance.cap)
    sharded = processes.world_size() <= len(prompts)
    local = answer_prompts(
        trainer.model,
        trainer.reference,
        trainer.engine,
        trainer.rewards,
        trainer.chat,
        processes.shard(prompts) if sharded else prompts,
        samples=samples,
        seed=seed_of(config.seed, -1) + processes.rank(),
        tokens_per_batch=config.tokens_per_batch,
        held_out=trainer.held_out,
        probe=probe,
    )
    gather_probes(probe).check(config.rollouts.logprob_bound, "on the held-out prompts")
    answers = (
        processes.unshard(processes.all_gather(local)) if sharded else processes.broadcast_from_main(local)
    )
    rewards = [answer.reward for group in answers for answer in group]
    if missing := rewards.count(None):
        print(f"{missing} of {len(rewards)} answers have no reward and are left out.", flush=True)
    return answers
