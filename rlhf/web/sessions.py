"""Signed session cookies: who a browser belongs to, and until when. They survive a restart of the server."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections.abc import Callable
from typing import Annotated

from pydantic import BaseModel, Field


class SignIn(BaseModel):
    """A token; it travels in the body, never in an address."""

    token: Annotated[str, Field(pattern=r"^[ -~]*$", max_length=200)]


HOURS = 12.0
"""How long a session lasts."""


def sign(name: str, secret: str, hours: float = HOURS) -> str:
    """A cookie's value for a person: name, expiry, and their HMAC-SHA256 under a secret."""
    content = f"{base64.urlsafe_b64encode(name.encode()).decode()}.{int(time.time() + 3600 * hours)}"
    return f"{content}.{_signature(content, secret)}"


def name_of(cookie: str, secret_of: Callable[[str], str | None]) -> str | None:
    """The person of a cookie; None where it is forged, of another store, or expired.

    Args:
        secret_of: the secret of a person's cookies; None where there is no such person.
    """
    content, _, signature = cookie.rpartition(".")
    encoded, _, expiry = content.partition(".")
    try:
        name = base64.urlsafe_b64decode(encoded).decode()
    except ValueError:
        return None
    secret = secret_of(name)
    # As bytes: compare_digest takes no text beyond ASCII, which a forged cookie may hold.
    if secret is None or not hmac.compare_digest(signature.encode(), _signature(content, secret).encode()):
        return None
    return None if float(expiry) < time.time() else name


def _signature(content: str, secret: str) -> str:
    return hmac.new(secret.encode(), content.encode(), hashlib.sha256).hexdigest()
