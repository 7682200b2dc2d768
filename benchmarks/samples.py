"""Pairs, prompts and answers that the benchmarks run on: real ones from a folder, or what this project
makes."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reward.training.batches import Item, make_items
from rlhf.config.schema import DataSource
from rlhf.core.records import Message, Preference, Prompt, Rollout
from rlhf.data.drops import DropReport
from rlhf.data.load import load_preferences, load_prompts
from rlhf.models.chat import Chat

PAIR_SOURCES: Mapping[str, list[str | int | float | bool]] = {
    "source": ["hh-helpful-test", "rmb-helpful", "webgpt-test"]
}
PROMPT_SOURCES: Mapping[str, list[str | int | float | bool]] = {
    "source": ["sharegpt-v3-part", "oasst-prompts-250", "self-instruct-seed175"]
}


def preferences(data: Path | None, limit: int) -> list[Preference]:
    """Some preferences, the same every time."""
    if data is None:
        source = DataSource(path="demo", format="helpsteer2-preference", annotations="raw", limit=limit)
    elif is_helpsteer(data):
        source = DataSource(path=str(data), format="helpsteer2-preference", limit=limit)
    else:
        source = DataSource(path=str(data / "preferences.jsonl.gz"), where=dict(PAIR_SOURCES), limit=limit)
    return load_preferences([source], seed=0, max_spread=2)[0]


def is_helpsteer(data: Path) -> bool:
    """Whether a folder is laid out as nvidia/HelpSteer2, as `read_and_tokenise.make_files` does."""
    return (data / "preference").is_dir()


def pairs(data: Path | None, chat: Chat, *, limit: int, longest: int) -> list[Item]:
    """Some pairs with a strength, as token ids; both sides are at most `longest` tokens."""
    items = make_items(
        preferences(data, limit), [], chat, attributes=["reward"], max_length=longest, report=DropReport()
    )
    return [item for item in items if item.strength]


def sides_of(item: Item) -> tuple[list[int], list[int]]:
    """Token ids of the chosen and of the rejected sequence."""
    first, second = [[*item.tree.trunk, *branch] for branch in item.tree.branches]
    return (second, first) if item.strength > 0 else (first, second)


def groups(
    data: Path | None, chat: Chat, *, prompts: int, samples: int, longest_prompt: int, longest_answer: int
) -> list[dict[str, Any]]:
    """Prompts with given answers: `messages`, and `answers` as token ids.

    An answer is the text of a real one to some prompt, cut at `longest_answer` tokens as a policy's is; one
    that is not cut ends with a stop token.
    """
    path = "demo" if data is None else str(data / "prompts.jsonl.gz")
    where = {} if data is None else dict(PROMPT_SOURCES)
    source = DataSource(path=path, where=where, limit=max(200, 20 * prompts))
    if data is not None and is_helpsteer(data):
        source = DataSource(path=str(data), format="helpsteer2-preference", limit=source.limit)
    loaded, _ = load_prompts([source])
    fitting = [p for p in loaded if len(chat.prompt_ids(p.messages)) <= longest_prompt][:prompts]
    texts = [
        text
        for pair in preferences(data, 20 * prompts * samples)
        for text in (pair.response_1, pair.response_2)
    ]
    random.Random(0).shuffle(texts)
    made = []
    for place, prompt in enumerate(fitting):
        answers = []
        for text in texts[place * samples : (place + 1) * samples]:
            ids = chat.tokenizer(text, add_special_tokens=False)["input_ids"]
            answers.append([*ids, chat.stop_ids[0]][:longest_answer])
        messages = [{"role": message.role, "content": message.content} for message in prompt.messages]
        made.append({"messages": messages, "answers": answers})
    return made


def as_prompts(given: Sequence[Mapping[str, Any]]) -> list[Prompt]:
    """The prompts of `groups` as records."""
    return [Prompt(tuple(Message(m["role"], m["content"]) for m in sample["messages"])) for sample in given]


def as_rollouts(given: Sequence[Mapping[str, Any]], chat: Chat) -> list[list[Rollout]]:
    """The answers of `groups` as an engine would have sampled them."""
    made = []
    for sample, prompt in zip(given, as_prompts(given), strict=True):
        ids = tuple(chat.prompt_ids(prompt.messages))
        made.append(
            [
                Rollout(ids, tuple(answer), (), answer[-1] in chat.stop_ids, chat.decode(answer))
                for answer in sample["answers"]
            ]
        )
    return made


def updates_of(pairs: Sequence[Sequence[Sequence[int]]], size: int, count: int) -> list[list[int]]:
    """`count` batches of one pass of transformers' length-grouped sampler over all pairs, evenly spread by
    length."""
    import torch
    from transformers.trainer_pt_utils import LengthGroupedSampler

    lengths = [max(map(len, pair)) for pair in pairs]
    sampler = LengthGroupedSampler(size, lengths=lengths, generator=torch.Generator().manual_seed(0))
    order = list(sampler)
    full = [order[first : first + size] for first in range(0, len(order) - size + 1, size)]
    full.sort(key=lambda update: -sum(lengths[place] for place in update))
    return [full[int((number + 0.5) * len(full) / count)] for number in range(count)]
