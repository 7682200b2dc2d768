"""`rlhf chat --web`: the models behind the chat page."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from policy.shared_base import SharedBase
from rlhf.core.records import Conversation, Message
from rlhf.web.chat import Answer, build_app


class PageSpeaker:
    """Models on one base that answer the page one after another.

    Args:
        roles: what a model is called on the page -> the policy's name on the base, None for the base itself.
    """

    def __init__(
        self, base: SharedBase, roles: Mapping[str, str | None], *, scored: bool, **sampling: Any
    ) -> None:
        self.base, self.roles, self.scored, self.sampling = base, dict(roles), scored, sampling

    @property
    def names(self) -> Sequence[str]:
        """The models, in the order in which they answer."""
        return list(self.roles)

    def answer(
        self, name: str, conversation: Conversation, seed: int, on_text: Callable[[str], None]
    ) -> Answer:
        """One sampled answer with its score."""
        streamer = _streamer(self.base.chat.tokenizer, on_text)
        ((rollout,),) = self.base.rollouts(
            [conversation], policy=self.roles[name], samples=1, seed=seed, streamer=streamer, **self.sampling
        )
        if not self.scored:
            return Answer(rollout.text, rollout.finished)
        (score,) = self.base.score([(*conversation, Message("assistant", rollout.text))])
        return Answer(rollout.text, rollout.finished, score.reward, dict(score.attributes))


def serve(speaker: PageSpeaker, *, host: str, port: int, store: str | None) -> None:
    """Serve the page until it is interrupted; pairs go to the annotation store, if there is one."""
    from rlhf.web import serving

    token = secrets.token_urlsafe(24)
    app = build_app(speaker, token, None if store is None else _keeper(store))
    with serving.bind(host, port) as bound:
        bound.listen(serving.BACKLOG)
        print(f"Token: {token}")
        print(f"Open {serving.url_of(bound)} and sign in with the token. Ctrl-C ends.", flush=True)
        serving.serve(app, bound)


def _keeper(location: str) -> Callable[[Conversation, str, str], bool]:
    from rlhf.annotate.store import Store
    from rlhf.annotate.tasks import Task, check_task

    store = Store(location)

    def keep(prompt: Conversation, first: str, second: str) -> bool:
        task = Task(prompt, first, second)
        check_task(task, "the pair")
        return store.add_tasks([task]) == 1

    return keep


def _streamer(tokenizer: Any, on_text: Callable[[str], None]) -> Any:
    """transformers' TextStreamer, whose text goes to a function."""
    from transformers import TextStreamer

    class Streamer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            """Pass a piece of text on."""
            if text:
                on_text(text)

    return Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
