"""UltraFeedback (openbmb/UltraFeedback): four completions of one instruction, each with ratings.

`completions` is a list of `{"response", "annotations": {ASPECT: {"Rating"}}, "fine-grained_score",
"overall_score"}`. The mean of the ratings comes first: the published `overall_score` has wrong values, 10
where the critique says 1 (argilla/ultrafeedback-binarized-preferences).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rlhf.core.records import Conversation, Preference, Prompt, Rating
from rlhf.data import rules
from rlhf.data.readers.messages import read_prompt
from rlhf.data.sources.rows import Row, as_number

if TYPE_CHECKING:
    from rlhf.config.schema import DataSource

COMPLETIONS = "completions"
SHAPE = '[{"response": TEXT, "annotations": {ASPECT: {"Rating": NUMBER}}, "overall_score": NUMBER}, ...]'
SCORES = ("annotations", "fine-grained_score", "overall_score")
"""What a completion is scored by: of a row the first that two of its completions have."""
LOWEST, HIGHEST = 1, 5
FEW_SCORED = "fewer than two completions with a score"
LEFT_OUT = "completions without a score are left out"


def fits(row: Row) -> bool:
    """Whether a row has a list of completions with responses, and an instruction."""
    return _are_completions(_listed(row.find(COMPLETIONS))) and row.find(_asked(row)) is not None


def has_annotations(row: Row) -> bool:
    """Whether a row fits and its first completion has ratings of aspects."""
    return fits(row) and isinstance(_completions(row)[0].get("annotations"), Mapping)


def prompt(row: Row, source: DataSource) -> Prompt:
    """The instruction of a row."""
    return Prompt(_prompt(row), source=source.path)


def preference(row: Row, source: DataSource) -> Preference:
    """The completion of the highest score over that of the lowest, with strength 1.

    Raises:
        DataError: a column is missing or of the wrong type.
        UnusableRowError: fewer than two completions with a score, equal scores, or another rule says why.
    """
    messages, completions = _prompt(row), _completions(row)
    for name in SCORES:
        scored = [
            (score, item["response"]) for item in completions if (score := _score(item, name)) is not None
        ]
        if len(scored) > 1:
            break
    else:
        raise rules.UnusableRowError(FEW_SCORED)
    if len(scored) < len(completions):
        row.noted.add(LEFT_OUT)
    best, worst = (extreme(scored, key=lambda item: item[0]) for extreme in (max, min))
    if best[0] == worst[0]:
        raise rules.UnusableRowError(rules.TIE)
    rules.require_responses(best[1], worst[1])
    rules.require_difference(best[1], worst[1])
    return Preference(messages, best[1], worst[1], -1, source=source.path)


def ratings(row: Row, source: DataSource) -> list[Rating]:
    """Each completion with its ratings, from 1..5 to 0..4; an aspect marked `N/A` is not rated.

    Raises:
        DataError: a column is missing or of the wrong type, or a rating is outside 1..5.
        UnusableRowError: no completion has a response and a rating.
    """
    messages, made = _prompt(row), list[Rating]()
    for item in _completions(row):
        values = {
            aspect: value
            for aspect, rating in _annotations(item).items()
            if (value := as_number(rating)) is not None
        }
        if outside := [value for value in values.values() if not LOWEST <= value <= HIGHEST]:
            raise row.wrong(COMPLETIONS, f"ratings from {LOWEST} to {HIGHEST}", value=item, around=outside[0])
        scaled = {aspect: 4 * (value - LOWEST) / (HIGHEST - LOWEST) for aspect, value in values.items()}
        if scaled and item["response"].strip():
            made.append(Rating(messages, item["response"], scaled, source=source.path))
    if not made:
        raise rules.UnusableRowError(rules.NO_RATING)
    return made


def _prompt(row: Row) -> Conversation:
    messages = read_prompt(row, _asked(row))
    rules.require_prompt(messages)
    return messages


def _asked(row: Row) -> str:
    return "instruction" if row.find("instruction") is not None else "prompt"


def _completions(row: Row) -> list[Mapping[str, Any]]:
    value = _listed(row.get(COMPLETIONS))
    if isinstance(value, list) and not value:
        raise rules.UnusableRowError(FEW_SCORED)
    if not _are_completions(value):
        raise row.wrong_item(COMPLETIONS, SHAPE, _is_completion)
    return list(value)


def _listed(value: Any) -> Any:
    """The completions of an object of lists, as `datasets` may write them; any other value as it is."""
    if not isinstance(value, Mapping) or not all(isinstance(items, list) for items in value.values()):
        return value
    if len({len(items) for items in value.values()}) != 1:
        return value
    return [dict(zip(value, items, strict=True)) for items in zip(*value.values(), strict=True)]


def _score(item: Mapping[str, Any], name: str) -> float | None:
    """A completion's score, or the mean of its ratings; None where it has none, or one of them is `N/A`."""
    if name != "annotations":
        return as_number(item.get(name))
    values = [as_number(rating) for rating in _annotations(item).values()]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _annotations(item: Mapping[str, Any]) -> dict[str, Any]:
    """Aspect -> its rating as it stands."""
    annotations = item.get("annotations")
    if not isinstance(annotations, Mapping):
        return {}
    return {
        str(aspect): annotation.get("Rating")
        for aspect, annotation in annotations.items()
        if isinstance(annotation, Mapping)
    }


def _are_completions(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_completion, value))


def _is_completion(item: Any) -> bool:
    return isinstance(item, Mapping) and isinstance(item.get("response"), str)
