"""Compare the answers of two systems to the same prompts by one or several judges."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reward.evaluation.judging import Group, judge
from reward.evaluation.self_check import ScorerLike
from reward.evaluation.winrate import Matchup, best_of_curve, versus
from rlhf.core.errors import DataError
from rlhf.core.records import Prompt
from rlhf.data.checks import gold_score
from rlhf.data.drops import DropReport

MAIN = "reward"
"""The judge by which the best of n is picked."""
Scores = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class AnsweredPrompt:
    """A prompt and the answers of both systems."""

    prompt: Prompt
    a: tuple[str, ...]
    b: tuple[str, ...]


def compare_systems(
    pairs: Sequence[AnsweredPrompt],
    judges: Mapping[str, ScorerLike],
    *,
    sizes: Sequence[int],
    drops: DropReport,
    on_progress: Callable[[int], None] = lambda _: None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The comparison by every judge and, where code can check the prompts, by the gold score.

    A prompt with an answer that a judge cannot take is left out for all of them.

    Args:
        pairs: the prompts with both sides' answers.
        judges: reward models by name; one is called `reward`.
        sizes: the n of best-of-n of side B's answers; none for no yardstick.
        drops: counts the prompts that are left out.
        on_progress: receives the number of prompts scored, over all judges.

    Returns:
        The result, and a row a prompt with each answer's scores.

    Raises:
        DataError: no prompt is left.
        DivergenceError: a reward is not a finite number.
    """
    scores = {}
    for number, (name, scorer) in enumerate(judges.items()):

        def report(done: int, before: int = number * len(pairs)) -> None:
            on_progress(before + done)

        scores[name] = _scores(pairs, scorer, name, drops, report)
    kept = [place for place in range(len(pairs)) if all(place in by_prompt for by_prompt in scores.values())]
    if not kept:
        raise DataError(
            "\n".join(["No prompt has answers that the reward model can take.", *drops.lines()]),
            fix="shorter answers (--max-new-tokens), or a reward model with a longer context",
        )
    gold = {place: _gold(pairs[place]) for place in kept if pairs[place].prompt.check is not None}
    judged = scores | ({"gold": gold} if gold else {})
    views = {
        name: versus([_matchup(pairs[place], by_prompt[place]) for place in kept if place in by_prompt])
        for name, by_prompt in judged.items()
    }
    result: dict[str, Any] = {"prompts": len(kept), "judges": views}
    if sizes:
        complete = {
            name: by_prompt for name, by_prompt in judged.items() if all(place in by_prompt for place in kept)
        }
        result["best_of"] = best_of_curve(
            [scores[MAIN][place][1] for place in kept],
            {name: [by_prompt[place][1] for place in kept] for name, by_prompt in complete.items()},
            sizes,
        )
    return result, [_row(pairs[place], place, judged) for place in kept]


def _scores(
    pairs: Sequence[AnsweredPrompt],
    scorer: ScorerLike,
    name: str,
    drops: DropReport,
    on_progress: Callable[[int], None],
) -> dict[int, Scores]:
    # A text that occurs twice is scored once: rounding depends on an answer's place in a batch, and must not
    # decide between equal texts.
    texts = [tuple(dict.fromkeys((*pair.a, *pair.b))) for pair in pairs]
    groups = [
        Group(pair.prompt.messages, answers, tuple(map(_ordinal, range(len(answers)))), f"judge {name}")
        for pair, answers in zip(pairs, texts, strict=True)
    ]
    results, _ = judge(groups, scorer, unit="prompt", drops=drops, on_progress=on_progress)
    scores = {}
    for entry in results:
        pair, rewards = pairs[entry.id - 1], dict(zip(texts[entry.id - 1], entry.rewards, strict=True))
        scores[entry.id - 1] = (
            tuple(rewards[text] for text in pair.a),
            tuple(rewards[text] for text in pair.b),
        )
    return scores


def _ordinal(place: int) -> str:
    return f"{place + 1}."


def _gold(pair: AnsweredPrompt) -> Scores:
    check = pair.prompt.check
    assert check is not None
    a, b = (tuple(gold_score(check, answer) for answer in answers) for answers in (pair.a, pair.b))
    return a, b


def _matchup(pair: AnsweredPrompt, scores: Scores) -> Matchup:
    return Matchup(*scores, tuple(map(len, pair.a)), tuple(map(len, pair.b)))


def _row(pair: AnsweredPrompt, place: int, judged: Mapping[str, Mapping[int, Scores]]) -> dict[str, Any]:
    """A prompt with every answer of both systems and its score by each judge."""
    systems = {
        system: [
            {
                "answer": answer,
                **{
                    name: by_prompt[place][index][number]
                    for name, by_prompt in judged.items()
                    if place in by_prompt
                },
            }
            for number, answer in enumerate(answers)
        ]
        for index, (system, answers) in enumerate((("a", pair.a), ("b", pair.b)))
    }
    prompt = [message.as_dict() for message in pair.prompt.messages]
    return {"prompt": prompt, "source": pair.prompt.source, **systems}
