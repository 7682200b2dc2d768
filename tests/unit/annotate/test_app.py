"""The server behind the page, request by request."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fastapi.testclient import TestClient

from rlhf.annotate.app import COOKIE, Settings, build_app, is_swapped
from rlhf.annotate.store import Store
from rlhf.core.records import HELPSTEER_ATTRIBUTES
from rlhf.web import sessions
from tests.unit.annotate.conftest import submission

JSON = {"Content-Type": "application/json"}


def signed_in(store: Store, name: str, *, adjudicates: bool = False, per_task: int = 3) -> TestClient:
    client = TestClient(build_app(store, Settings(per_task)))
    answer = client.post("/api/session", json={"token": store.add_annotator(name, adjudicates=adjudicates)})
    assert answer.status_code == 200
    return client


def body(
    strength: int | None = 2, left: int = 4, right: int = 1, *, final: bool = True, reason: str = "So."
) -> Any:
    ratings = [dict.fromkeys(HELPSTEER_ATTRIBUTES, value) for value in (left, right)]
    shown = {"strength": strength, "ratings_1": ratings[0], "ratings_2": ratings[1], "reason": reason}
    return {"submission": shown, "final": final, "seconds": 5}


def test_sides_are_shuffled_and_what_is_saved_is_not(store: Store) -> None:
    seen = set()
    for name in ("ana", "ben", "cy", "dan", "eve", "fay"):
        client = signed_in(store, name, per_task=9)
        task = client.get("/api/next").json()["task"]
        swapped = is_swapped(task["number"], name, 0)
        assert (task["left"] == "tea!") is swapped
        assert client.put(f"/api/tasks/{task['number']}", json=body(strength=-3)).status_code == 200
        saved = store.saved(task["number"], name)
        assert saved is not None
        assert saved.submission.strength == (3 if swapped else -3)
        assert saved.submission.ratings_1["helpfulness"] == (1 if swapped else 4)
        back = client.get(f"/api/tasks/{task['number']}").json()["task"]
        assert back["submission"]["strength"] == -3, "the page shows what the person picked"
        seen.add(swapped)
    assert seen == {True, False}


def test_a_draft_may_be_incomplete_and_a_submission_may_not(store: Store) -> None:
    client = signed_in(store, "ana")
    number = client.get("/api/next").json()["task"]["number"]
    half = {"submission": {"reason": "half a sen"}, "seconds": 1}
    assert client.put(f"/api/tasks/{number}", json=half).status_code == 200
    assert client.get("/api/next").json()["task"]["submission"]["reason"] == "half a sen"
    refused = client.put(f"/api/tasks/{number}", json=half | {"final": True})
    assert refused.status_code == 422
    assert "a preference" in refused.json()["detail"]
    assert "coherence of the left response" in refused.json()["detail"].replace(
        "helpfulness, correctness, ", ""
    ).replace(", complexity, verbosity", "")
    neither = {"submission": {"strength": -100, "reason": "Both are wrong."}, "final": True}
    assert client.put(f"/api/tasks/{number}", json=neither).status_code == 200


@pytest.mark.parametrize(
    "content",
    [
        {"strength": 0},
        {"strength": 4},
        {"ratings_1": {"helpfulness": 5}},
        {"ratings_1": {"wit": 1}},
        {"x": 1},
    ],
)
def test_values_that_do_not_exist(store: Store, content: dict[str, Any]) -> None:
    client = signed_in(store, "ana")
    assert client.put("/api/tasks/1", json={"submission": content}).status_code == 422


def test_strangers_learn_nothing(store: Store) -> None:
    client = TestClient(build_app(store, Settings()))
    for path in ("/api/next", "/api/tasks/1", "/api/progress", "/api/session"):
        assert client.get(path).status_code == 401
    assert client.post("/api/session", json={"token": "guess"}).status_code == 401
    assert client.get("/openapi.json").status_code == 404
    forged = [sessions.sign("ana", "another secret"), "ana.9999999999.", "", "x.y.z", "YW5h.9999999999.\xe9"]
    store.add_annotator("ana")
    secret = store.session_secret("ana")
    assert secret is not None
    expired, good = sessions.sign("ana", secret, hours=-1), sessions.sign("ana", secret)

    def status(cookie: str) -> int:
        headers = {b"Cookie": f"{COOKIE}={cookie}".encode("latin-1")}
        return client.get("/api/next", headers=headers).status_code  # type: ignore[arg-type]

    assert {status(cookie) for cookie in (*forged, expired)} == {401}
    assert status(good) == 200
    store.add_annotator("ana")  # a new token
    assert status(good) == 401, "whoever had the old token is signed out"


def test_half_of_a_surrogate_pair_is_refused(store: Store) -> None:
    """UTF-8 has no such character: it could be saved and not exported."""
    client = signed_in(store, "ana")
    headers = {"Content-Type": "application/json"}
    content = b'{"submission": {"reason": "\\ud83d"}}'
    refused = client.put("/api/tasks/1", content=content, headers=headers)
    assert refused.status_code == 422
    assert refused.json()["detail"].startswith("submission.reason: ")


def test_forms_of_other_sites_and_long_bodies_are_refused(store: Store) -> None:
    client = signed_in(store, "ana")
    plain = {"Content-Type": "text/plain"}
    assert client.put("/api/tasks/1", content=json.dumps(body()), headers=plain).status_code == 415
    long = body(reason="x" * 300_000)
    assert client.put("/api/tasks/1", json=long).status_code == 413
    assert client.get("/").headers["content-security-policy"].startswith("default-src 'self'")
    cookie = (
        client.post("/api/session", json={"token": store.add_annotator("ben")}).headers["set-cookie"].lower()
    )
    assert "httponly" in cookie
    assert "samesite=strict" in cookie


def test_an_adjudicator_sees_what_is_disputed_and_decides(store: Store) -> None:
    for name, strength in (("ana", -3), ("ben", 3), ("cy", 1)):
        store.add_annotator(name)
        store.save(1, name, submission(strength), final=True, seconds=1)
        store.save(2, name, submission(2), final=True, seconds=1)
    client = signed_in(store, "dora", adjudicates=True)
    assert client.get("/api/progress").json()["disputed"] == 1
    task = client.get("/api/next").json()["task"]
    assert (task["number"], len(task["others"])) == (1, 3)
    assert "ana" not in json.dumps(task), "the adjudicator sees what was written, not by whom"
    assert client.put("/api/tasks/1", json=body(strength=1)).status_code == 200
    decided = store.adjudications()[1].strength
    assert decided == (-1 if is_swapped(1, "dora", 0) else 1)
    assert client.get("/api/next").json()["task"] is None
    assert len(store.annotations()) == 6, "a decision is no annotation"


def test_a_failed_save_is_an_error_on_the_page(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from sqlalchemy.exc import OperationalError

    client = signed_in(store, "ana")

    def full(*_: Any, **__: Any) -> None:
        raise OperationalError("INSERT", {}, Exception("database or disk is full"))

    monkeypatch.setattr(Store, "save", full)
    answer = client.put("/api/tasks/1", json=body())
    assert (answer.status_code, "disk is full" in answer.json()["detail"]) == (507, True)
