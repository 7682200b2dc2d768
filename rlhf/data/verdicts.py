"""The verdict of a written justification: `@Response 1 is slightly better than @Response 2.`"""

from __future__ import annotations

import re

DEGREES = {"slightly better": 1, "better": 2, "much better": 3}
VERDICT = re.compile(r"@Response ([12]) is (slightly better|much better|better) than @Response ([12])\b")


def statement_of(strength: int) -> str:
    """The statement of a preference of -3..3; negative prefers response 1.

    Raises:
        ValueError: the strength is 0 or out of range.
    """
    degree = next((words for words, value in DEGREES.items() if value == abs(strength)), None)
    if degree is None:
        raise ValueError(f"strength {strength}")
    better, worse = (2, 1) if strength > 0 else (1, 2)
    return f"@Response {better} is {degree} than @Response {worse}."


def read_verdict(text: str) -> int | None:
    """The strength of the last verdict in a text, -3..3 without 0; None where there is none.

    A verdict is `@Response A is slightly better (better, much better) than @Response B`, A and B being 1 and
    2 or 2 and 1.
    """
    matches = [match for match in VERDICT.finditer(text) if match[1] != match[3]]
    if not matches:
        return None
    better, degree, _ = matches[-1].groups()
    return DEGREES[degree] if better == "2" else -DEGREES[degree]
