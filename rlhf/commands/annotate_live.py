"""`rlhf annotate serve --policy`: the models whose responses are sampled while people annotate."""

from __future__ import annotations

from pathlib import Path

from rlhf.annotate.live import LivePairs
from rlhf.annotate.store import Store
from rlhf.core.errors import ConfigError, ModelError
from rlhf.core.records import Conversation


def live_pairs(
    store: Store,
    policies: list[str],
    prompts: str | None,
    *,
    max_new_tokens: int,
    temperature: float,
    seed: int,
) -> LivePairs:
    """Load one or two policies on one base; a single policy is compared with the base.

    Raises:
        ConfigError: no prompts, the same policy twice, or more than two.
        ModelError: a policy is not an adapter, or the two have different bases.
    """
    if prompts is None:
        raise ConfigError("--policy needs prompts to answer.", fix="--prompts FILE")
    if len(policies) > 2 or len({Path(policy).resolve() for policy in policies}) < len(policies):
        raise ConfigError(
            f"--policy: found {', '.join(policies)}.",
            allowed="one policy, compared with its base, or two different ones",
        )
    from policy.evaluation.speaker import Speaker  # torch loads only where answers are sampled
    from policy.shared_base import SharedBase
    from rlhf.config.schema import DataSource
    from rlhf.data.load import load_prompts

    rows, drops = load_prompts([DataSource(path=prompts)])
    print("\n".join(drops.lines()))
    speakers = [Speaker.read(policy) for policy in policies]
    for policy, speaker in zip(policies, speakers, strict=True):
        if speaker.folder is None:
            raise ModelError(
                f"--policy {policy} is a whole model.",
                allowed="the final/ folder of an `align-policy` run that trained an adapter",
                fix=f"rlhf compare {policy} BASE --prompts {prompts} --reward MODEL",
            )
    base = SharedBase.load(**speakers[0].model, chat=speakers[0].chat)
    names: list[str | None] = []
    for place, speaker in enumerate(speakers):
        assert speaker.folder is not None
        names.append(f"policy {place}")
        base.add_policy(speaker.folder, f"policy {place}")
    first, second = (names[0], names[1] if len(names) == 2 else None)

    def sample(prompt: Conversation, attempt: int) -> tuple[str, str]:
        answers = [
            base.answer(
                [prompt],
                policy=name,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                seed=seed + attempt,
            )[0][0]
            for name in (first, second)
        ]
        return answers[0], answers[1]

    return LivePairs(store, [row.messages for row in rows], sample)
