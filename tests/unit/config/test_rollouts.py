"""The `rollouts` section: servers and what goes with them."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from rlhf.config.rollouts import ImportanceConfig, RolloutConfig

URL = "http://127.0.0.1:8000"


@pytest.mark.parametrize(
    ("told", "kept"),
    [
        (URL, URL),
        (f"{URL}/", URL),
        (f"{URL}/v1", URL),
        (f"{URL}/v1/", URL),
        ("https://host/gpu-1", "https://host/gpu-1"),
    ],
)
def test_addresses(told: str, kept: str) -> None:
    assert RolloutConfig(engine="servers", servers=[told]).servers == [kept]


def test_ahead_with_what_corrects_it() -> None:
    told = RolloutConfig(
        engine="servers", servers=[URL], overlap=1, importance_sampling=ImportanceConfig(level="sequence")
    )
    assert told.overlap == 1 and RolloutConfig().overlap == 0


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"engine": "servers"}, "servers goes with engine: servers, which needs it"),
        ({"servers": [URL]}, "servers goes with engine: servers, which needs it"),
        ({"engine": "servers", "servers": [URL, f"{URL}/v1"]}, "one address stands there twice"),
        ({"engine": "servers", "servers": ["127.0.0.1:8000"]}, "write http://HOST:PORT"),
        ({"engine": "servers", "servers": ["http://me:secret@host"]}, "put a token into the environment"),
        (
            {"engine": "servers", "servers": ["http://host?api_key=secret"]},
            "put a token into the environment",
        ),
        ({"overlap": 1}, "overlap goes with engine: servers"),
        ({"timeout": 5}, "timeout goes with engine: servers"),
        ({"token_env": "MINE"}, "token_env goes with engine: servers"),
        ({"adapter_folder": "/shared"}, "adapter_folder goes with engine: servers"),
        ({"engine": "servers", "servers": [URL], "timeout": 0}, "greater than 0"),
        ({"engine": "servers", "servers": [URL], "overlap": 2}, "0 or 1"),
        (
            {"engine": "servers", "servers": [URL], "overlap": 1},
            "a policy that is one update old, which only importance_sampling corrects",
        ),
    ],
)
def test_what_does_not_go_together(told: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RolloutConfig.model_validate(told)
