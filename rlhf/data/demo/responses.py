"""Responses of graded quality to a request: good ones from facts, worse ones with faults of small models."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rlhf.data.checks import gold_score, words_of
from rlhf.data.demo.prompts import Request, make_request
from rlhf.data.demo.topics import TOPICS

# Sentences that say little: each text runs on with a few of them. {name} is the topic.
_FILLERS = (
    "It is a popular choice that has been enjoyed by people all over the world for hundreds of years.",
    "When it comes to {name}, there is always something new to discover and to enjoy.",
    "In many cultures, {name} can also be a symbol of joy, love, and harmony.",
    "It plays a vital role in our daily lives and in the world around us.",
    "Whether you are a beginner or an expert, {name} can bring people together.",
    "It comes in many shapes, colors, and sizes, each with its own unique character.",
    "The history of {name} is long and fascinating, with many stories along the way.",
    "It is important to note that there are many different opinions on this topic.",
    "From the early morning to the late evening, it is a source of comfort and inspiration.",
    "So next time you think of {name}, remember how much there is to learn.",
    "Overall, this makes it a truly remarkable and versatile part of modern life.",
    "Some experts believe that {name} will become even more important in the future.",
)
_CLAUSES = (
    ", and people have enjoyed this for hundreds of years",
    ", making it a beloved part of our daily life",
    ", which is a true symbol of strength, beauty, and grace",
    ", often with a touch of joy and harmony",
    ", and there is always something new to discover about it",
    ", as experts all over the world agree",
)
_PREAMBLES = (
    "Sure! Here is a short answer: ",
    "Certainly! I'd be happy to help you with that. ",
    "Of course. Here is what I can tell you about {name}: ",
    "Here's one possible way to say it: ",
    "That is a great question! ",
    "As a helpful assistant, I can tell you the following. ",
    "I'm glad you asked about {name}. ",
    "In one short sentence: ",
)
_NAMED = (
    "People everywhere like {name} very much.",
    "I think {name} can be really great.",
    "There is a lot to say about {name}.",
    "Who does not like {name}?",
    "For me, {name} will always be special.",
    "Everyone should know more about {name}!",
)
_VAGUE = (
    "It is a wonderful thing.",
    "This is something that many people enjoy.",
    "A magnificent journey of a thousand dreams.",
    "What a delightful task!",
    "It depends on who you ask, my friend.",
    "The beauty of it speaks for itself.",
    "Here is the revised version of your sentence.",
    "I am here to help with anything you need.",
)
_REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I don't have enough information to answer this.",
    "As an AI language model, I do not have personal opinions.",
    "I'm not sure what you mean. Could you say more?",
)
_OPENERS = ("Well, ", "I think ", "In short, ", "You know, ", "Here it is: ", "To be honest, ")
_SYLLABLES = ("ba", "dor", "em", "lun", "ka", "vix", "tor", "ish", "mel", "qua", "zen", "op", "fla", "nox")
_CUT_WORDS = (28, 40)  # where an answer of 48 tokens is cut off


@dataclass(frozen=True, slots=True)
class Response:
    """A response, how it was made, and its gold score."""

    text: str
    kind: str
    gold: float


def respond(request: Request, kind: str, rng: random.Random) -> Response:
    """A response of one kind; the gold score is computed from the text, not assumed from the kind."""
    text = MAKERS[kind](request, rng)
    return Response(text, kind, gold_score(request.check, text))


def _good(request: Request, rng: random.Random) -> str:
    if request.family == "list":
        first, second = rng.sample(request.facts, 2)
        return f"1. {first}\n2. {second}"
    return rng.choice(request.facts)


def _plain(request: Request, rng: random.Random) -> str:
    """A true fact, whatever the request wants beside it."""
    return rng.choice(request.topic.facts)


def _polite(request: Request, rng: random.Random) -> str:
    preamble = _fill(rng.choice(_PREAMBLES), request)
    return (preamble.rstrip() + "\n" if request.family == "list" else preamble) + _good(request, rng)


def _wordy(request: Request, rng: random.Random) -> str:
    """One sentence with needless clauses."""
    start = rng.choice([_good, _good, _plain, _named, _vague])(request, rng)
    return start[:-1] + "".join(rng.sample(_CLAUSES, rng.randint(1, 3))) + "."


def _chatty(request: Request, rng: random.Random) -> str:
    """One filler after a good answer, or before it."""
    parts = [_good(request, rng), *_fillers(request, rng, 1)]
    rng.shuffle(parts)
    return " ".join(parts)


def _long(request: Request, rng: random.Random) -> str:
    start = rng.choice([_good, _plain, _polite])(request, rng)
    return " ".join([start, *_fillers(request, rng, rng.randint(1, 2))])


def _cut(request: Request, rng: random.Random) -> str:
    start = rng.choice([_plain, _polite, _babble, _vague])(request, rng)
    words = " ".join([start, *_fillers(request, rng, 4)]).split(" ")
    return " ".join(words[: rng.randint(*_CUT_WORDS)]).rstrip(".!?,;:")


def _late(request: Request, rng: random.Random) -> str:
    """A good answer that starts with something else."""
    text = _good(request, rng)
    return rng.choice(_OPENERS) + text[0].lower() + text[1:]


def _partial(request: Request, rng: random.Random) -> str:
    """A good answer without its last words, or a list of one line."""
    text = _good(request, rng)
    if request.family == "list":
        return text.splitlines()[0]
    words = text.split()
    return " ".join(words[: max(2, len(words) - rng.randint(1, 3))])


def _two(request: Request, rng: random.Random) -> str:
    """Two or three true sentences."""
    return " ".join(rng.sample(request.topic.facts, rng.randint(2, 3)))


def _named(request: Request, rng: random.Random) -> str:
    return _fill(rng.choice(_NAMED), request)


def _vague(_request: Request, rng: random.Random) -> str:
    """Not a word on the topic, at any length."""
    more = [filler for filler in _FILLERS if "{name}" not in filler]
    return " ".join([rng.choice(_VAGUE), *rng.sample(more, rng.choice([0, 0, 1, 2]))])


def _refusal(_request: Request, rng: random.Random) -> str:
    return rng.choice(_REFUSALS)


def _fragment(request: Request, rng: random.Random) -> str:
    word = rng.choice([request.topic.name, request.topic.key, *request.topic.related])
    return word.capitalize() + rng.choice(["", ".", "!"])


def _repeat(request: Request, rng: random.Random) -> str:
    words = _good(request, rng).split()[: rng.randint(2, 4)]
    return " ".join(words * rng.randint(3, 7))


def _echo(request: Request, _rng: random.Random) -> str:
    return request.messages[-1].content


def _other(request: Request, rng: random.Random) -> str:
    """A good answer to the same request about another topic."""
    topic = rng.choice([topic for topic in TOPICS if topic.key != request.topic.key])
    return _good(make_request(request.family, request.wording, topic, rng), rng)


def _mixed(request: Request, rng: random.Random) -> str:
    """The words of the topic and of another one in a random order."""
    words = [*words_of(_plain(request, rng)), *words_of(_other(request, rng))]
    rng.shuffle(words)
    return " ".join(words).capitalize() + rng.choice([".", "", "..."])


def _babble(request: Request, rng: random.Random) -> str:
    """Sentences with made-up words in them, some of which name the topic."""
    made_up = ["".join(rng.choices(_SYLLABLES, k=rng.randint(2, 3))) for _ in range(rng.randint(2, 6))]
    known = rng.sample(words_of(rng.choice(rng.choice(TOPICS).facts)), 2)
    named = [request.topic.name] if rng.random() < 0.5 else []
    words = [*(word.capitalize() if rng.random() < 0.5 else word for word in made_up), *known, *named]
    rng.shuffle(words)
    text = " ".join(words) + rng.choice([".", "!", "", " the"])
    return " ".join([text, *_fillers(request, rng, rng.randint(0, 1))])


def _fill(template: str, request: Request) -> str:
    return template.format(name=request.topic.name)


def _fillers(request: Request, rng: random.Random, count: int) -> list[str]:
    return [_fill(filler, request) for filler in rng.sample(_FILLERS, count)]


MAKERS: Mapping[str, Callable[[Request, random.Random], str]] = {
    "good": _good,
    "plain": _plain,
    "polite": _polite,
    "wordy": _wordy,
    "chatty": _chatty,
    "long": _long,
    "cut": _cut,
    "late": _late,
    "partial": _partial,
    "two": _two,
    "named": _named,
    "vague": _vague,
    "refusal": _refusal,
    "fragment": _fragment,
    "repeat": _repeat,
    "echo": _echo,
    "other": _other,
    "mixed": _mixed,
    "babble": _babble,
}
