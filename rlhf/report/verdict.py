"""The verdict on a run: one sentence, computed from the evaluation before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from rlhf.report.numbers import decimals_for, finite, fixed, percent, signed

Tone = Literal["good", "flat", "bad", "open"]
SPREAD_GROWTH = 1.5
"""Last over first quarter of an ensemble's spread, from which the report warns."""
FEW_COUNTED = 0.5
"""Share of the answers that take part in training, below which the report warns."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The first lines of the page: a label, one sentence, and remarks."""

    tone: Tone
    label: str
    sentence: str
    more: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Change:
    """A quantity before and after, the mean difference and its 95 % interval (None: not computed)."""

    before: float
    after: float
    mean: float
    low: float | None
    high: float | None

    @property
    def rose(self) -> bool:
        """Whether the whole interval is above zero."""
        return self.low is not None and self.low > 0

    @property
    def fell(self) -> bool:
        """Whether the whole interval is below zero."""
        return self.high is not None and self.high < 0

    @property
    def decimals(self) -> int:
        """Decimals that show the larger of the difference and its interval with two digits."""
        half = 0.0 if self.low is None or self.high is None else (self.high - self.low) / 2
        return decimals_for(max(abs(self.mean), half))

    def write(self, value: float) -> str:
        """A value of this quantity, with as many decimals as its change needs."""
        return fixed(value, self.decimals)

    @property
    def difference(self) -> str:
        """The mean difference, signed."""
        return signed(self.mean, self.decimals)

    @property
    def interval(self) -> str:
        """The 95 % interval of the difference, or the empty string."""
        if self.low is None or self.high is None:
            return ""
        return f"{self.write(self.low)} to {self.write(self.high)}"

    def sentence(self, name: str) -> str:
        """`Gold score rose from 0.31 to 0.52 (+0.21, 95 % interval 0.16 to 0.26)`, without its full stop."""
        before, after = self.write(self.before), self.write(self.after)
        if not self.interval:
            return f"{name} went from {before} to {after} ({self.difference}, no interval was computed)"
        figures = f"({self.difference}, 95\N{NO-BREAK SPACE}% interval {self.interval})"
        if self.rose or self.fell:
            return f"{name} {'rose' if self.rose else 'fell'} from {before} to {after} {figures}"
        return f"{name} did not change measurably: {before} before, {after} after {figures}"


def change(evaluation: Mapping[str, Any], name: str) -> Change | None:
    """One quantity of eval.json; None if it is missing before or after."""
    before, after = (finite((evaluation.get(side) or {}).get(name)) for side in ("before", "after"))
    if before is None or after is None:
        return None
    difference = (evaluation.get("difference") or {}).get(name) or {}
    mean = finite(difference.get("mean"))
    low, high = (difference.get("ci95") or (None, None))[:2]
    return Change(before, after, after - before if mean is None else mean, finite(low), finite(high))


def policy_verdict(evaluation: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]] = ()) -> Verdict:
    """The verdict on a policy, by the gold score if there is one, else by the rewards.

    Args:
        metrics: rows of the updates; remarks are added where they gave the reward no gradient.
    """
    verdict = _verdict(evaluation)
    more = [*counted_remark(metrics), *_flat_remark(metrics), *verdict.more, *judge_remarks(metrics)]
    return replace(verdict, more=more)


def counted_remark(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """A warning where most answers take no part in training."""
    counted, finished = _mean_of(metrics, "reward/counted_share"), _mean_of(metrics, "length/finished_share")
    if counted is None or finished is None or counted >= FEW_COUNTED:
        return []
    return [
        f"{percent(1 - counted, 0)} of the sampled answers take no part in training: they are cut off "
        "(algorithm.unfinished: drop), have no reward, or their group is skipped. "
        f"{percent(finished, 0)} end before rollouts.max_new_tokens; where these are few, raise it, and look "
        "whether answers end with the base's turn end."
    ]


def _flat_remark(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """A warning where no group had a spread; a critic's advantages do not need one."""
    shares = [finite(row.get("reward/groups_with_spread")) for row in metrics if "loss/value" not in row]
    spread = [share for share in shares if share is not None]
    if not spread or any(spread):
        return []
    return [
        f"No group had a spread: in all {len(spread)} updates the counted answers to one prompt had equal "
        "rewards after shaping, so that the reward had no part in the gradient. Use a reward that separates "
        "answers, harder or easier prompts, or more samples_per_prompt."
    ]


def _verdict(evaluation: Mapping[str, Any]) -> Verdict:
    reward, gold = change(evaluation, "reward"), change(evaluation, "gold")
    held_out = change(evaluation, "held_out")
    if reward is None and gold is None:
        return Verdict("open", "No verdict yet", "The policy has not been evaluated on held-out prompts yet.")
    at = _at_a_kl(evaluation.get("after") or {})
    if gold is None:
        assert reward is not None
        verdict = _by_reward(reward, at) if held_out is None else _by_held_out(reward, held_out, at)
    else:
        verdict = _by_gold(gold, reward, at)
    more = [] if gold is None or held_out is None else _beside_gold(held_out, reward)
    return Verdict(
        verdict.tone, verdict.label, verdict.sentence, [*verdict.more, *more, *_length(evaluation)]
    )


def judge_remarks(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """Remarks on the training reward: agreement with the held-out reward, a judge's position bias, and an
    ensemble whose members come to disagree.

    Means over the updates that log the figure; of the ensemble over its first and its last quarter.
    """
    remarks = []
    agreement = _mean_of(metrics, "reward/held_out_agreement")
    if agreement is not None:
        remarks.append(
            f"Reward and held-out reward order {percent(agreement, 0)} of the pairs of answers to one "
            "prompt alike; chance is 50."
        )
    bias, orders = _mean_of(metrics, "judge/position_bias"), _mean_of(metrics, "judge/order_agreement")
    if bias is not None:
        both = "" if orders is None else f"; both orders agree on {percent(orders, 0)} of the pairs"
        remarks.append(
            f"The judge gives the answer shown first {signed(bias, 2)} points more than the other{both}."
        )
    return [*remarks, *_spread_remark(metrics)]


def _spread_remark(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """A warning where the spread of an ensemble grew by half or more."""
    spreads = [value for row in metrics if (value := finite(row.get("reward/spread"))) is not None]
    part = len(spreads) // 4
    if not part:
        return []
    first, last = sum(spreads[:part]) / part, sum(spreads[-part:]) / part
    if last < SPREAD_GROWTH * first or last == first:
        return []
    places = decimals_for(last)
    return [
        f"The reward models of the ensemble disagree more than at the start: their standard deviation went "
        f"from {fixed(first, places)} to {fixed(last, places)} points, a sign of over-optimisation. "
        "A smaller KL, or fewer updates, keeps the policy where they agree."
    ]


def _mean_of(metrics: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [value for row in metrics if (value := finite(row.get(name))) is not None]
    return sum(values) / len(values) if values else None


def _at_a_kl(after: Mapping[str, Any]) -> str:
    """KL of the policy, per token (the sum over an answer divided by the mean length) and per answer."""
    kl, length = finite(after.get("kl")), finite(after.get("length"))
    if kl is None:
        return ""
    per_answer = f"{fixed(kl, decimals_for(abs(kl)))} per answer"
    if not length:
        return f" at a KL of {per_answer}"
    return f" at a KL of {fixed(kl / length, decimals_for(abs(kl / length)))} per token ({per_answer})"


def _by_gold(gold: Change, reward: Change | None, at: str) -> Verdict:
    sentence = f"{gold.sentence('Gold score')}{at}."
    more = [f"{reward.sentence('The reward')}."] if reward else []
    if gold.fell and reward and reward.rose:
        sentence = f"{gold.sentence('Gold score')} while {reward.sentence('the reward')}{at}."
        return Verdict(
            "bad",
            "Warning: reward hacking",
            sentence,
            [
                "The policy exploits the reward model at the cost of correct answers. Read the worst "
                "answers below. Then raise the KL coefficient, stop earlier, or retrain the reward model "
                "on data that covers such answers."
            ],
        )
    if gold.fell:
        return Verdict("bad", "It got worse", sentence, more)
    if gold.rose:
        return Verdict("good", "It worked", sentence, more)
    if not gold.interval:
        return Verdict("open", "No verdict", sentence, more)
    if reward and reward.rose:
        more.append(
            "The reward rose, the checks did not: look for answers with a high reward that are not correct."
        )
    return Verdict("flat", "No measurable change", sentence, more)


def _by_reward(reward: Change, at: str) -> Verdict:
    sentence = f"{reward.sentence('Reward')}{at}."
    caution = (
        "These prompts have no check, so there is no gold score: only the reward model judged the answers. "
        "Read them to see whether they are better."
    )
    if reward.rose:
        return Verdict("open", "The reward rose", sentence, [caution])
    if reward.fell:
        return Verdict("bad", "The reward fell", sentence, [caution])
    if not reward.interval:
        return Verdict("open", "No verdict", sentence, [caution])
    return Verdict("flat", "No measurable change", sentence, [caution])


def _by_held_out(reward: Change, held_out: Change, at: str) -> Verdict:
    """The verdict without a gold score: by a reward that the policy was not trained on."""
    sentence, more = f"{reward.sentence('Reward')}{at}.", [f"{held_out.sentence('The held-out reward')}."]
    if reward.rose and held_out.fell:
        sentence = f"{reward.sentence('Reward')} while {held_out.sentence('the held-out reward')}{at}."
        hacked = (
            "The policy exploits its training reward. Read the worst answers below; then raise the KL "
            "coefficient, stop earlier, or retrain the reward model on data that covers such answers."
        )
        return Verdict("bad", "Warning: reward hacking", sentence, [hacked])
    if reward.rose and held_out.rose:
        more.append(
            "A reward that the policy was not trained on rose too. Both may have the same weaknesses."
        )
        return Verdict("good", "The reward rose", sentence, more)
    if reward.rose:
        more.append("Only the training reward rose: look for answers with a high reward that are not better.")
        return Verdict("open", "The reward rose", sentence, more)
    plain = _by_reward(reward, at)
    return Verdict(plain.tone, plain.label, sentence, more)


def _beside_gold(held_out: Change, reward: Change | None) -> list[str]:
    """Remarks on the held-out reward, for a verdict by the gold score."""
    lines = [f"{held_out.sentence('The held-out reward')}."]
    if held_out.fell and reward and reward.rose:
        lines.append(
            "The reward rose while the held-out reward fell: the policy exploits its training reward."
        )
    return lines


def _length(evaluation: Mapping[str, Any]) -> list[str]:
    """A remark if answers became longer by half or shorter by a third."""
    length = change(evaluation, "length")
    if length is None or length.before <= 0 or 2 / 3 <= length.after / length.before <= 1.5:
        return []
    word = "longer" if length.after > length.before else "shorter"
    much = percent(abs(length.after / length.before - 1), 0)
    return [
        f"Answers became {much} {word} ({length.write(length.before)} to {length.write(length.after)} "
        "tokens): check that the reward does not depend on length alone."
    ]
