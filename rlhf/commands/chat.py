"""`rlhf chat`: chat with a policy in the terminal, or through a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from rlhf.commands.generate import Policy, Seed
from rlhf.core.errors import DataError, ModelError
from rlhf.core.records import Conversation, Message, Rollout

if TYPE_CHECKING:
    from reward.scorer import Score

COMMANDS = "/reset starts a new conversation, /quit (or end of input) exits"


def command(
    policy: Policy,
    base: Annotated[
        bool, typer.Option("--base", help="Also print the base's answers, in the same conversation.")
    ] = False,
    reward: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Score each answer: `final` folder of a `train-reward` run on the same base.",
        ),
    ] = None,
    temperature: Annotated[
        float,
        typer.Option(min=0.0, help="Sampling temperature; 0 is greedy decoding."),
    ] = 0.7,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 256,
    seed: Seed = 0,
    web: Annotated[
        bool,
        typer.Option(
            "--web", help="A page in the browser, the policy beside its base, in place of the terminal."
        ),
    ] = False,
    store: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="With --web: keep pairs of answers here, for `rlhf annotate serve --store FILE`.",
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="With --web: address to listen on; 127.0.0.1 is this machine.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="With --web: port to listen on.")] = 8901,
) -> None:
    """Chat with a policy over several turns.

    Answers are streamed. /reset starts a new conversation, /quit exits. With a pipe as input, every line is
    one turn: printf 'Hello\\nAnd now shorter\\n' | rlhf chat POLICY.

    \b
    Example:
      rlhf chat runs/demo/policy/final --base --reward runs/demo/reward/final
    """
    from transformers import TextStreamer  # torch loads only when the command runs

    from policy.evaluation.speaker import Speaker
    from policy.shared_base import SharedBase

    speaker = Speaker.read(policy)
    if base and speaker.card:
        raise ModelError(
            f"--base: {policy} is a whole model, whose base would have to be loaded separately.",
            allowed="--base with a policy that is an adapter",
            fix=f"rlhf compare {policy} BASE --prompts FILE --reward MODEL",
        )
    shared = SharedBase.load(**speaker.model, chat=speaker.chat)
    if speaker.folder is not None:
        shared.add_policy(speaker.folder)
    if reward is not None:
        shared.add_reward(reward)
    who: dict[str, str | None] = {speaker.name: None if speaker.folder is None else "policy"}
    if (base or web) and speaker.folder is not None:
        who["base"] = None
    if web:
        from rlhf.commands.chat_page import PageSpeaker, serve

        sampling = {"max_new_tokens": max_new_tokens, "temperature": temperature}
        page = PageSpeaker(shared, who, scored=reward is not None, **sampling)
        serve(page, host=host, port=port, store=store)
        return
    streamer: Any = TextStreamer(shared.chat.tokenizer, skip_prompt=True, skip_special_tokens=True)
    answer = partial(
        shared.rollouts, samples=1, max_new_tokens=max_new_tokens, temperature=temperature, streamer=streamer
    )
    console = Console(highlight=False)
    talk(answer, who, console, _lines(console), shared.score if reward else None, seed)


def talk(
    answer: Callable[..., list[list[Rollout]]],
    who: Mapping[str, str | None],
    console: Console,
    lines: Iterator[str],
    score: Callable[[Sequence[Conversation]], Sequence[Score]] | None,
    seed: int,
) -> None:
    """Answer each line until the input ends; the answers of the first of `who` become part of the
    conversation."""
    conversation: Conversation = ()
    for turn, line in enumerate(lines, start=1):
        if line.startswith("/"):
            known = line == "/reset"
            conversation = () if known else conversation
            console.print(
                "A new conversation." if known else f"unknown command {line}: {COMMANDS}.",
                style="dim",
                markup=False,
            )
            continue
        prompt, answers = (*conversation, Message("user", line)), []
        for name, role in who.items():
            console.print(f"{name}:", style="bold", markup=False)
            try:
                ((rollout,),) = answer([prompt], policy=role, seed=seed + turn)
            except DataError as error:  # the context is full
                console.print(f"{error}\n/reset starts a new conversation.", style="red", markup=False)
                break
            answers.append(Message("assistant", rollout.text))
            notes = [f"reward {score([(*prompt, answers[-1])])[0].reward:.2f}"] if score else []
            notes += [] if rollout.finished else [f"cut off at {len(rollout.completion_ids)} tokens"]
            console.print("  ".join(notes), style="dim", end="\n" if notes else "")
        else:
            conversation = (*prompt, answers[0])


def _lines(console: Console) -> Iterator[str]:
    """The lines of stdin up to /quit or the end, without blank ones; on a terminal with a prompt."""
    if sys.stdin.isatty():
        console.print(f"Type a line; {COMMANDS}.", style="dim")
    while True:
        if sys.stdin.isatty():
            console.print("you: ", style="bold", end="")
        line = sys.stdin.readline()
        if not line or line.strip() == "/quit":
            return
        if line.strip():
            yield line.strip()
