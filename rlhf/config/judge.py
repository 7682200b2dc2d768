"""The config of a judge model: `reward: {judge: {...}}`, and the file of `rlhf evaluate-reward --judge`."""

from __future__ import annotations

import re
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from rlhf.config.schema import Count, CountOrZero, NonNegative, Positive, ReasoningRule, Strict

JUDGE_TOKEN_ENV = "RLHF_JUDGE_TOKEN"  # noqa: S105 - the name of a variable
PAIRWISE_FORMS = ("boxed", "json", "justifier")
"""Forms in which a judge can compare two responses."""
OWN_FIELDS = frozenset(("model", "messages", "temperature", "max_tokens", "n", "stream"))
"""Fields of a request that other keys set, or that would change the form of its answer."""

SECRET_FIELDS = frozenset(
    ("api_key", "apikey", "api-key", "authorization", "access_token", "token", "secret", "password")
)
"""Fields whose values would be secrets in the config of a run, its log and its model card."""


class JudgeConfig(Strict):
    """An OpenAI-compatible chat server that judges responses."""

    url: str
    """Address of the server up to and without `/v1`, such as http://127.0.0.1:8000 (`vllm serve MODEL`)."""
    model: str
    """Model name in the requests."""
    form: Literal["boxed", "json", "yes-no", "rubric", "justifier"] = "boxed"
    """What the judge writes: scores in \\boxed{}, scores in JSON, Yes or No to each criterion (one request
    each), or Yes or No to all criteria in one JSON list."""
    pairing: Literal["single", "circle", "all"] = "single"
    """`single` judges each response alone; `circle` compares each response of a group with the next one;
    `all` compares all pairs of a group."""
    orders: Literal["both", "one"] = "both"
    """Pairwise only: show each pair in both orders, or in one."""
    criteria: list[str] = Field(default_factory=list)
    """Principles the response should fulfil. `yes-no` and `rubric` need at least one; the other forms show
    them."""
    reasoning: ReasoningRule = "keep"
    """What the judge sees of `<think>` parts of responses: all, nothing, or such responses are not judged."""
    temperature: NonNegative = 0.0
    """Sampling temperature of the judge."""
    max_tokens: Count = 1024
    """Longest text the judge may write, its reasoning included."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """Further fields of each request, such as `chat_template_kwargs: {enable_thinking: false}`."""
    concurrency: Count = 16
    """Requests in flight at once."""
    timeout: Positive = 120.0
    """Seconds to wait for one response of the server."""
    retries: CountOrZero = 4
    """Further attempts after a time-out, a lost connection, status 408, 429 or 5xx, or a response that is no
    completion, after 1, 2, 4, ... seconds."""
    token_env: str = JUDGE_TOKEN_ENV
    """Environment variable with the server's token; unset or empty sends none."""
    dollars_per_million: tuple[NonNegative, NonNegative] = (0.0, 0.0)
    """Price of a million prompt tokens and of a million completion tokens, for judge/dollars in the log."""

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        urlsplit(self.url)  # a ValueError of its own where an IPv6 address is not closed
        if not re.fullmatch(r"https?://[^?#@\s]+", self.url):
            raise ValueError(
                f"url: found {self.url!r}; write http://HOST:PORT, and put a token into ${self.token_env}"
            )
        if self.url.rstrip("/").endswith("/v1"):
            raise ValueError(f"url: found {self.url!r}; leave out /v1, it is added")
        if self.pairing != "single" and self.form not in PAIRWISE_FORMS:
            raise ValueError(
                f"form {self.form} judges one response; write pairing: single, or form: boxed or json"
            )
        if self.form in ("yes-no", "rubric") and not self.criteria:
            raise ValueError(f"form {self.form} needs criteria; write criteria: ['The response ...']")
        if self.form == "justifier" and (self.pairing == "single" or self.criteria):
            raise ValueError(
                "form justifier compares two responses without criteria; write pairing: circle or all"
            )
        if taken := sorted(self.extra_body.keys() & OWN_FIELDS):
            raise ValueError(
                f"extra_body: {', '.join(taken)} cannot be set there; any other field of the server can"
            )
        if secret := sorted(name for name in self.extra_body if name.lower() in SECRET_FIELDS):
            raise ValueError(
                f"extra_body: {', '.join(secret)} would be stored in the run; put the server's token into "
                f"${self.token_env}"
            )
        if any(not criterion.strip() for criterion in self.criteria):
            raise ValueError("criteria: one criterion is empty; remove it")
        return self

    @property
    def pairwise(self) -> bool:
        """Whether the judge compares two responses at a time."""
        return self.pairing != "single"
