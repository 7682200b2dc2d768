"""Principles in words for the synthetic responses, and whether code finds them fulfilled."""

from __future__ import annotations

import re

from rlhf.data.checks import mentions, words_of
from rlhf.data.demo.prompts import Request
from rlhf.data.demo.responses import Response

SHORT, LONG = 10, 16


def principles_of(request: Request, response: Response) -> list[tuple[str, bool]]:
    """Every principle with whether the response fulfils it."""
    text, words = response.text, len(words_of(response.text))
    name = request.topic.name
    sentences = len([part for part in re.split(r"[.!?]+(?:\s|$)", text) if part.strip()])
    return [
        (f"The response has at most {SHORT} words.", words <= SHORT),
        (f"The response has more than {LONG} words.", words > LONG),
        ("The response is a single sentence.", sentences == 1),
        (f"The response mentions {name}.", mentions(request.topic.key, set(words_of(text)))),
        ("The response uses real words only.", response.kind != "babble"),
        ("The response ends with a full stop.", text.rstrip().endswith(".")),
    ]
