"""What `align-policy --dry-run` checks and prints."""

from __future__ import annotations

from policy.rewards.precheck import check_sources
from policy.rollouts.overlap import LAG
from policy.training.describe import describe_algorithm, describe_rewards, describe_roles, other_bases
from policy.training.prompt_data import load_data, repeat_warnings
from policy.training.roles import check_start
from rlhf.config.policy import PolicyConfig
from rlhf.models import bases
from rlhf.tracking.session import check_session


def dry_run(config: PolicyConfig) -> list[str]:
    """Check a config without loading a model, and describe its run.

    Raises:
        UserError: the run would fail.
    """
    check_session(config)
    chat = bases.load_chat(config.model)
    data = load_data(config, chat)
    notes = bases.check(config.model, config.adapter)
    check_sources(config, chat, data.training + data.held_out)
    check_start(config, chat)
    rollouts = config.rollouts
    return [
        *data.drops.lines(),
        *repeat_warnings(config, len(data.training)),
        *notes,
        data.split_sentence(),
        f"{config.steps} updates of {rollouts.prompts_per_step} prompts x {rollouts.samples_per_prompt} "
        f"answers = {rollouts.answers} answers of at most {rollouts.max_new_tokens} tokens, by "
        f"{rollouts.engine}",
        *([LAG] if rollouts.overlap else []),
        *describe_rewards(config),
        *other_bases(config),
        *describe_algorithm(config.algorithm, rollouts.max_new_tokens),
        *describe_roles(config),
    ]
