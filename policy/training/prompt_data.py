"""Prompts of a run: read, filtered, and divided into training and held-out prompts."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf.config.policy import PolicyConfig
from rlhf.core.errors import ConfigError, DataError, RefusalError
from rlhf.core.records import Prompt
from rlhf.data.drops import DropReport, place_of
from rlhf.data.load import load_prompts
from rlhf.data.split import fraction
from rlhf.models.chat import Chat
from rlhf.models.chat.control_tokens import SPELLED
from rlhf.models.chat.same_prompts import SAME_PROMPT, digest_of

TOO_LONG = "longer than data.max_prompt_tokens"
"""The drop reason of prompts with too many tokens."""
HELD_OUT_SHARE = 0.2
"""Largest share of the prompts that is held out, whatever `evaluation.prompts` is."""


@dataclass(frozen=True)
class PromptData:
    """Training prompts, held-out prompts, and the report of dropped ones."""

    training: list[Prompt]
    held_out: list[Prompt]
    drops: DropReport

    def split_sentence(self) -> str:
        """The sizes of the two parts."""
        return (
            f"{len(self.training):,} prompts to train on, {len(self.held_out):,} held out for the evaluation"
        )


def load_data(config: PolicyConfig, chat: Chat) -> PromptData:
    """Load the prompts of all sources and hold out `evaluation.prompts` of them.

    Dropped are prompts that are too long, repeated, or refused by the chat template. A hash of the prompt
    decides which are held out, independent of seed and order.

    Raises:
        ConfigError: prompt and answer together do not fit into model.max_length.
        DataError: no prompts are left to train on, or none to hold out.
    """
    longest = config.data.max_prompt_tokens + config.rollouts.max_new_tokens
    if longest > config.model.max_length:
        raise ConfigError(
            f"data.max_prompt_tokens + rollouts.max_new_tokens = {longest}.",
            allowed=f"at most model.max_length = {config.model.max_length}",
            fix=f"model.max_length={longest} if the base's context allows it; else lower one of the two",
        )
    prompts, drops = load_prompts(config.data.prompts)
    fitting, shortest_dropped = _filter(prompts, config.data.max_prompt_tokens, chat, drops)
    if spelled := sum(chat.spells_control_tokens(prompt.messages) for prompt in fitting):
        drops.notes[SPELLED] += spelled
    count = min(config.evaluation.prompts, max(1, int(HELD_OUT_SHARE * len(fitting))))
    held_out = sorted(fitting, key=lambda prompt: fraction(prompt.messages, "evaluation"))[:count]
    withheld = {prompt.messages for prompt in held_out}
    training = [prompt for prompt in fitting if prompt.messages not in withheld]
    if not training or not held_out:
        raise DataError(
            f"{len(fitting)} prompts are left, and some are needed to train on and some to hold out.\n"
            + "\n".join(drops.lines()),
            allowed="at least two prompts",
            fix=_more_prompts(drops, shortest_dropped),
        )
    return PromptData(training, held_out, drops)


def _filter(
    prompts: list[Prompt], max_tokens: int, chat: Chat, drops: DropReport
) -> tuple[list[Prompt], int | None]:
    """The prompts to keep, and the length of the shortest one that was too long; drops are counted."""
    fitting = []
    shortest_dropped: int | None = None
    seen: set[bytes] = set()
    for prompt, ids in zip(prompts, chat.prompts_ids(prompt.messages for prompt in prompts), strict=True):
        if isinstance(ids, RefusalError):
            drops.drop(ids.reason, place_of(prompt))
        elif len(ids) > max_tokens:
            drops.drop(TOO_LONG, place_of(prompt))
            shortest_dropped = min(shortest_dropped or len(ids), len(ids))
        elif (digest := digest_of(ids)) in seen:
            drops.drop(SAME_PROMPT, place_of(prompt))
        else:
            seen.add(digest)
            fitting.append(prompt)
    return fitting, shortest_dropped


def _more_prompts(drops: DropReport, shortest_dropped: int | None) -> str:
    """The fix for too few prompts, by the most frequent reason for which prompts were dropped."""
    reason = drops.reasons.most_common(1)[0][0] if drops.reasons else None
    if reason == TOO_LONG and shortest_dropped is not None:
        return f"data.max_prompt_tokens={shortest_dropped} or more, the length of the shortest dropped prompt"
    if reason == SAME_PROMPT:
        return "add prompts that differ: equal ones count once"
    if reason is None:
        return "add prompts: data.prompts needs two at least"
    return f"remove the cause of the most frequent reason ({reason}), or add other prompts to data.prompts"


def repeat_warnings(config: PolicyConfig, prompts: int) -> list[str]:
    """A warning where an update uses the same prompt twice, or no line.

    Args:
        prompts: number of training prompts.
    """
    per_step = config.rollouts.prompts_per_step
    if prompts >= per_step:
        return []
    return [
        f"Warning: {prompts} training prompts for updates of {per_step}: prompts repeat within an update. "
        f"Do this: rollouts.prompts_per_step={prompts}, or more prompts"
    ]
