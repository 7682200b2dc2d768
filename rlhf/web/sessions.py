"""Signed session cookies: who a browser belongs to, and until when. They survive a restart of the server."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time

from pydantic import BaseModel


class SignIn(BaseModel):
    """A token; it travels in the body, never in an address."""

    token: str


HOURS = 12.0
"""How long a session lasts."""


def sign(name: str, secret: str, hours: float = HOURS) -> str:
    """A cookie's value for a person: name, expiry, and their HMAC-SHA256 under the store's secret."""
    content = f"{base64.urlsafe_b64encode(name.encode()).decode()}.{int(time.time() + 3600 * hours)}"
    return f"{content}.{_signature(content, secret)}"


def name_of(cookie: str, secret: str) -> str | None:
    """The person of a cookie; None where it is forged, of another store, or expired."""
    content, _, signature = cookie.rpartition(".")
    if not hmac.compare_digest(signature, _signature(content, secret)):
        return None
    name, _, expiry = content.partition(".")
    if float(expiry) < time.time():
        return None
    return base64.urlsafe_b64decode(name).decode()


def _signature(content: str, secret: str) -> str:
    return hmac.new(secret.encode(), content.encode(), hashlib.sha256).hexdigest()
