"""Paths as users write them, and names that nothing stands behind."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import httpx
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from rlhf.core import hub
from rlhf.core.places import expand


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own with `models/tiny` in it, as current folder and home."""
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RUNS", "/data/runs")
    hub.find_missing.cache_clear()
    return tmp_path


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("~/x", "{home}/x"),
        ("$RUNS/a", "/data/runs/a"),
        ("${RUNS}/a", "/data/runs/a"),
        ("$HOME/$RUNS", "{home}//data/runs"),
        ("a~b", "a~b"),
        ("cost$", "cost$"),
        ("org/name", "org/name"),
    ],
)
def test_what_is_expanded(written: str, meant: str, here: Path) -> None:
    assert expand(written) == meant.format(home=here)


def test_a_path_that_exists_as_it_is_written_stays(here: Path) -> None:
    (here / "$RUNS").mkdir()
    assert expand("$RUNS") == "$RUNS"


def test_a_variable_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_SET_AT_ALL", raising=False)
    with pytest.raises(ValueError, match="NOT_SET_AT_ALL"):
        expand("$NOT_SET_AT_ALL/x")


def test_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(ValueError, match="HOME"):
        expand("~/x")


@pytest.mark.parametrize("name", ["./models/tny", "/models/tiny", "models/tiny/deep", "a b"])
def test_an_explicit_path_never_asks_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_query", lambda *_: pytest.fail("a request was made"))
    missing = hub.find_missing(name, "model")
    assert missing is not None
    assert ("?" in missing.found) == ("tny" in name)  # a question names the closest folder


@pytest.mark.parametrize("kind", ["model", "dataset"])
@pytest.mark.parametrize(("name", "near"), [("models/tny", "models/tiny"), ("modls/tiny", "models/tiny")])
def test_a_typo_is_shown_beside_what_was_meant(
    kind: Any, name: str, near: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "_query", lambda *_: "unreachable")
    missing = hub.find_missing(name, kind)
    assert missing is not None
    assert f"'{near}'" in missing.found and "hf download" in missing.fix


def test_what_exists_or_is_cached_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_query", lambda *_: pytest.fail("a request was made"))
    assert hub.find_missing("models/tiny", "model") is None
    monkeypatch.setattr(hub, "_is_cached", lambda *_: True)
    assert hub.find_missing("org/name", "model") is None


def _response() -> httpx.Response:
    return httpx.Response(404, request=httpx.Request("GET", "https://huggingface.co/api/models/org/name"))


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (None, None),
        (RepositoryNotFoundError("no", response=_response()), "auth login"),
        (GatedRepoError("no", response=_response()), "request access"),
        (RevisionNotFoundError("no", response=_response()), "revision"),
        (httpx.ConnectError("no route"), "hf download"),
        (httpx.ConnectTimeout("slow"), "hf download"),
    ],
)
def test_each_answer_of_the_hub_has_a_fix_of_its_own(
    error: Exception | None, word: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[Any] = []

    def info(self: Any, *words: Any, **options: Any) -> None:
        requests.append(options)
        if error is not None:
            raise error

    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", info)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    missing = hub.find_missing("org/name", "model", "main")
    assert (missing is None) if word is None else (missing is not None and word in missing.fix)
    assert [options["timeout"] for options in requests] == [hub.TIMEOUT]
