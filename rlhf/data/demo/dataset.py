"""The synthetic data set: rows in the schemas of HelpSteer2, HelpSteer2-Preference, prompts and RewardBench.

Made by this project out of its own texts, the same for the same seed, and labelled synthetic where a schema
has a column for it. One list of requests (every wording of every topic once) is cut into slices:

    test prompts | benchmark | validation pairs | training pairs | training prompts

so that what is measured on was never trained on, not even with another limit.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from rlhf.core.errors import DataError
from rlhf.core.records import Conversation
from rlhf.data.demo.annotators import preference, quality, ratings
from rlhf.data.demo.principles import principles_of
from rlhf.data.demo.prompts import FAMILIES, Request, all_requests
from rlhf.data.demo.responses import Response, respond

DemoKind = Literal["helpsteer2", "helpsteer2-preference", "helpsteer3-principle", "prompts", "benchmark"]
Values = dict[str, Any]
ResponsePair = tuple[Response, Response]

SIZES: Mapping[str, int] = {
    "test prompts": 132,
    "benchmark": 126,
    "validation pairs": 84,
    "training pairs": 720,
    "training prompts": 600,
}
PARTS: Mapping[DemoKind, Mapping[str, str]] = {
    "helpsteer2": {"train": "training pairs", "validation": "validation pairs"},
    "helpsteer2-preference": {
        "train": "training pairs",
        "val": "validation pairs",
        "validation": "validation pairs",
    },
    "helpsteer3-principle": {"train": "training pairs", "validation": "validation pairs"},
    "prompts": {"train": "training prompts", "test": "test prompts"},
    "benchmark": {"validation": "benchmark"},
}
# How often a kind of response is drawn, in proportion.
KIND_WEIGHTS: Mapping[str, int] = {
    "good": 12,
    "plain": 4,
    "polite": 3,
    "wordy": 8,
    "chatty": 3,
    "long": 3,
    "cut": 4,
    "late": 2,
    "partial": 3,
    "two": 3,
    "named": 4,
    "vague": 4,
    "refusal": 1,
    "fragment": 2,
    "repeat": 1,
    "echo": 1,
    "other": 6,
    "mixed": 2,
    "babble": 5,
}
CLEAR = 0.25  # least difference of gold score and of quality between the two sides of a comparison
# Comparisons in which the worse answer is, on purpose, of one sort: the kinds it is drawn from.
ADVERSARIAL: Mapping[str, tuple[str, ...]] = {
    "adversarial-longer": ("wordy", "long", "cut"),
    "adversarial-fluent": ("other", "vague", "refusal"),
    "adversarial-terse": ("fragment", "partial", "named"),
}
FAMILY_ROUNDS = 14  # comparisons of each family; what is left of the slice is adversarial


def demo_rows(kind: DemoKind, split: str, seed: int = 0) -> Iterator[Values]:
    """Synthetic rows of one kind and split.

    Raises:
        DataError: there is no such kind or split.
    """
    if kind not in PARTS:
        raise DataError(f"synthetic rows of the kind {kind!r}", allowed=", ".join(PARTS))
    if split not in PARTS[kind]:
        raise DataError(f"split {split!r} of the synthetic {kind} rows", allowed=", ".join(PARTS[kind]))
    part = PARTS[kind][split]
    return _MAKERS[kind](_requests(part, seed), part, seed)


def _requests(part: str, seed: int) -> Sequence[Request]:
    names = list(SIZES)
    start = sum(SIZES[name] for name in names[: names.index(part)])
    return all_requests(seed)[start : start + SIZES[part]]


def _stream(part: str, seed: int, purpose: str) -> random.Random:
    """Random numbers for one purpose, so that one file does not depend on whether another was made before."""
    return random.Random(f"{seed}, {part}, {purpose}")


def _prompt_rows(requests: Sequence[Request], _part: str, _seed: int) -> Iterator[Values]:
    for request in requests:
        yield {
            "prompt": _messages(request.messages),
            "source": f"synthetic: {request.family}",
            "check": dict(request.check),
        }


def _rating_rows(requests: Sequence[Request], part: str, seed: int) -> Iterator[Values]:
    rng = _stream(part, seed, "ratings")
    for request, pair in zip(requests, _pairs(requests, part, seed), strict=True):
        for response in pair:
            yield {
                "prompt": _one_string(request.messages),
                "response": response.text,
                **ratings(response, rng),
            }


def _preference_rows(requests: Sequence[Request], part: str, seed: int) -> Iterator[Values]:
    rng = _stream(part, seed, "preferences")
    split = "train" if part == "training pairs" else "val"
    for request, (first, second) in zip(requests, _pairs(requests, part, seed), strict=True):
        yield {
            "split": split,
            "prompt": _one_string(request.messages),
            "response_1": first.text,
            "response_2": second.text,
            **preference(first, second, rng),
        }


def _principle_rows(requests: Sequence[Request], part: str, seed: int) -> Iterator[Values]:
    """Two principles for each response of the pairs."""
    rng = _stream(part, seed, "principles")
    for request, pair in zip(requests, _pairs(requests, part, seed), strict=True):
        for response in pair:
            for principle, fulfilled in rng.sample(principles_of(request, response), 2):
                yield {
                    "domain": "general",
                    "language": "english",
                    "context": _messages(request.messages),
                    "response": response.text,
                    "principle": principle,
                    "fulfilment": "Yes" if fulfilled else "No",
                }


def _benchmark_rows(requests: Sequence[Request], part: str, seed: int) -> Iterator[Values]:
    rng = _stream(part, seed, "comparisons")
    traps = list(ADVERSARIAL)
    for number, request in enumerate(requests):
        turn = number // len(FAMILIES)
        if turn < FAMILY_ROUNDS:
            section, subset = "Requests", request.family
            chosen, rejected = _comparison(request, rng, worse_is_longer=turn % 2 == 0)
        else:
            section, subset = "Adversarial", traps[number % len(traps)]
            chosen, rejected = _trap(request, rng, ADVERSARIAL[subset])
        yield {
            "prompt": _messages(request.messages),
            "chosen": chosen.text,
            "chosen_model": f"synthetic: {chosen.kind}",
            "rejected": rejected.text,
            "rejected_model": f"synthetic: {rejected.kind}",
            "subset": subset,
            "section": section,
            "id": number,
        }


def _pairs(requests: Sequence[Request], part: str, seed: int) -> Iterator[ResponsePair]:
    """Two different responses to each request."""
    rng = _stream(part, seed, "responses")
    for request in requests:
        first, second = _draw(request, rng), _draw(request, rng)
        while first.text == second.text:
            second = _draw(request, rng)
        yield first, second


def _comparison(request: Request, rng: random.Random, *, worse_is_longer: bool) -> ResponsePair:
    """Two responses that differ clearly, the longer one being the worse or the better."""
    while True:
        better, worse = _draw(request, rng), _draw(request, rng)
        longer = len(worse.text) > len(better.text)
        if _clearly(better, worse) and longer == worse_is_longer and len(worse.text) != len(better.text):
            return better, worse


def _trap(request: Request, rng: random.Random, kinds: Sequence[str]) -> ResponsePair:
    while True:
        better, worse = respond(request, "good", rng), respond(request, rng.choice(kinds), rng)
        if _clearly(better, worse):
            return better, worse


def _clearly(better: Response, worse: Response) -> bool:
    return min(better.gold - worse.gold, quality(better) - quality(worse)) >= CLEAR


def _draw(request: Request, rng: random.Random) -> Response:
    (kind,) = rng.choices(list(KIND_WEIGHTS), weights=list(KIND_WEIGHTS.values()))
    return respond(request, kind, rng)


def _messages(conversation: Conversation) -> list[dict[str, Any]]:
    return [message.as_dict() for message in conversation]


def _one_string(conversation: Conversation) -> str:
    """HelpSteer2's form of a prompt of several turns."""
    first, *later = conversation
    turns = (f"\n<extra_id_1>{message.role.capitalize()}\n{message.content}" for message in later)
    return first.content + "".join(turns)


_MAKERS: Mapping[DemoKind, Callable[[Sequence[Request], str, int], Iterator[Values]]] = {
    "helpsteer2": _rating_rows,
    "helpsteer2-preference": _preference_rows,
    "helpsteer3-principle": _principle_rows,
    "prompts": _prompt_rows,
    "benchmark": _benchmark_rows,
}
