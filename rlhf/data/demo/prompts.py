"""Requests of the synthetic data: a topic in one of several wordings, with the check of its answer."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlhf.core.records import Conversation, Message
from rlhf.data.checks import mentions, words_of
from rlhf.data.demo.topics import TOPICS, Topic

NUMBERS = {6: "six", 8: "eight", 10: "ten", 12: "twelve"}
SENTENCE_LIMIT = 12  # words in what a request calls one short sentence
LINE_LIMIT = 10
LINES = 2
# A wording that starts like this follows a first exchange; so does all of the family `shorten`.
LATER = "Now "

WORDINGS: Mapping[str, tuple[str, ...]] = {
    "words": (
        "Tell me about {name} in at most {limit} words.",
        "In at most {limit} words: what do you know about {name}?",
        "Tell me something about {name}. Keep it to {limit} words.",
        "Describe {name} in no more than {limit} words.",
        "Explain {name} to a child in at most {limit} words.",
    ),
    "shorten": (
        "Now say it in at most {limit} words.",
        "Shorten that to at most {limit} words.",
        "That is too long. Use at most {limit} words.",
        "Sum that up in no more than {limit} words.",
        "Can you say that in at most {limit} words?",
    ),
    "sentence": (
        "Describe {name} in one short sentence.",
        "Tell me about {name} in exactly one short sentence.",
        "Write one short sentence about {name}.",
        "Give me a single short sentence on {name}.",
        "Now say that in one short sentence.",
    ),
    "opening": (
        'Tell me about {name} in one short sentence. Start with the words "{start}".',
        'Write one short sentence about {name} that starts with "{start}".',
        'One short sentence about {name}, please. It has to start with "{start}".',
        'Say something about {name} in one short sentence that begins with "{start}".',
        'Now say it in one short sentence that starts with "{start}".',
    ),
    "include": (
        'Describe {name} in one short sentence. Use the words "{first}" and "{second}".',
        'Write one short sentence about {name} that contains the words "{first}" and "{second}".',
        'Tell me about {name} in one short sentence with the words "{first}" and "{second}".',
        'In one short sentence, connect {name} with "{first}" and "{second}".',
        'Now give me one short sentence with the words "{first}" and "{second}".',
    ),
    "list": (
        "List two facts about {name}, numbered 1 and 2, each of at most ten words.",
        "Give me two short facts about {name} as a numbered list.",
        "Tell me two things about {name}. Number them 1 and 2, and keep them short.",
        "What are two things to know about {name}? Answer with a short numbered list.",
        "Now put that in a numbered list of two short lines.",
    ),
}
FAMILIES = tuple(WORDINGS)
LIMITS = {"words": (8, 10, 12), "shorten": (6, 8, 10)}
_FIRST_TURNS = ("Tell me about {name}.", "What do you know about {name}?", "What can you say about {name}?")


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt, the check of an answer, and the facts on which a good answer can be built."""

    family: str
    wording: int
    topic: Topic
    messages: Conversation
    check: Mapping[str, Any]
    facts: tuple[str, ...]


def make_request(family: str, wording: int, topic: Topic, rng: random.Random) -> Request:
    """One request; `rng` draws its limit, its words and the order of the facts."""
    facts = rng.sample(topic.facts, len(topic.facts))
    check: dict[str, Any] = {"family": family, "key": topic.key, "related": list(topic.related)}
    names: dict[str, str] = {"name": topic.name}
    if family in LIMITS:
        check["limit"] = rng.choice(LIMITS[family])
        names["limit"] = NUMBERS[check["limit"]]
        facts = [fact for fact in facts if len(words_of(fact)) <= check["limit"]]
    elif family == "list":
        check |= {"limit": LINE_LIMIT, "count": LINES}
        facts = [fact for fact in facts if len(words_of(fact)) <= LINE_LIMIT]
    else:
        check["limit"] = SENTENCE_LIMIT
    if family == "opening":
        facts = [fact for fact in facts if fact.lower().startswith(topic.name + " ")]
        starts = [" ".join(fact.split()[: len(topic.name.split()) + 1]) for fact in facts]
        common = [start for start in starts if start.endswith((" is", " are", " have"))]
        names["start"] = check["start"] = (common or starts)[0]
        facts = [fact for fact, start in zip(facts, starts, strict=True) if start == names["start"]]
    if family == "include":
        wanted = [
            word for word in words_of(facts[0]) if any(mentions(stem, {word}) for stem in topic.related)
        ]
        check["wanted"] = wanted[:2]
        names["first"], names["second"] = wanted[:2]
        facts = [fact for fact in facts if set(wanted[:2]) <= set(words_of(fact))]
    check["request"] = WORDINGS[family][wording].format(**names)
    messages: Conversation = (Message("user", check["request"]),)
    if family == "shorten" or WORDINGS[family][wording].startswith(LATER):
        question = rng.choice(_FIRST_TURNS).format(name=topic.name)
        answer = " ".join(rng.sample(topic.facts, 3))
        messages = (Message("user", question), Message("assistant", answer), *messages)
    return Request(family, wording, topic, messages, check, tuple(facts))


def all_requests(seed: int) -> list[Request]:
    """Every wording of every topic once, in an order drawn by `seed` in which the families take turns.

    Slices of this list share no (topic, wording), and hold every family equally.
    """
    rng = random.Random(seed)
    by_family = []
    for family in FAMILIES:
        pairs = [(wording, topic) for wording in range(len(WORDINGS[family])) for topic in TOPICS]
        rng.shuffle(pairs)
        by_family.append([make_request(family, wording, topic, rng) for wording, topic in pairs])
    return [request for turn in zip(*by_family, strict=True) for request in turn]
