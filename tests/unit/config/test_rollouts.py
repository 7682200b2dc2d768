"""The `rollouts` section: servers and the keys that need them."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from rlhf.config.rollouts import ImportanceConfig, RolloutConfig

URL = "http://127.0.0.1:8000"


@pytest.mark.parametrize(
    ("url", "stored"),
    [
        (URL, URL),
        (f"{URL}/", URL),
        (f"{URL}/v1", URL),
        (f"{URL}/v1/", URL),
        ("https://host/gpu-1", "https://host/gpu-1"),
    ],
)
def test_addresses(url: str, stored: str) -> None:
    assert RolloutConfig(engine="servers", servers=[url]).servers == [stored]


def test_transformers_samples_at_any_temperature() -> None:
    assert RolloutConfig(engine="transformers", temperature=2.5).temperature == 2.5


def test_ahead_with_what_corrects_it() -> None:
    config = RolloutConfig(
        engine="servers", servers=[URL], overlap=1, importance_sampling=ImportanceConfig(level="sequence")
    )
    assert config.overlap == 1 and RolloutConfig().overlap == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"engine": "servers"}, "engine: servers"),
        ({"servers": [URL]}, "engine: servers"),
        ({"engine": "servers", "servers": [URL, f"{URL}/v1"]}, "servers"),
        ({"engine": "servers", "servers": ["127.0.0.1:8000"]}, "http://HOST:PORT"),
        ({"engine": "servers", "servers": ["http://me:secret@host"]}, "environment"),
        (
            {"engine": "servers", "servers": ["http://host?api_key=secret"]},
            "environment",
        ),
        ({"temperature": 2.5}, "0.01 to 2"),
        ({"temperature": 0.005}, "0.01 to 2"),
        ({"overlap": 1}, "overlap .*engine: servers"),
        ({"timeout": 5}, "timeout .*engine: servers"),
        ({"token_env": "TOKEN"}, "token_env .*engine: servers"),
        ({"adapter_folder": "/shared"}, "adapter_folder .*engine: servers"),
        ({"engine": "servers", "servers": [URL], "timeout": 0}, "greater than 0"),
        ({"engine": "servers", "servers": [URL], "overlap": 2}, "0 or 1"),
        (
            {"engine": "servers", "servers": [URL], "overlap": 1},
            "overlap: 1 .*importance_sampling",
        ),
    ],
)
def test_invalid_combinations(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RolloutConfig.model_validate(values)
