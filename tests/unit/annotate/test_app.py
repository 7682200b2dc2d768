"""The server behind the page, request by request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from rlhf.annotate.app import Settings, build_app, cookie_of, is_swapped
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
        headers = {b"Cookie": f"{cookie_of(store)}={cookie}".encode("latin-1")}
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
    pieces = client.put("/api/tasks/1", content=(b"[" for _ in range(3)), headers=JSON)
    assert pieces.status_code == 411, "a body without a length could be of any"
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


def test_a_change_of_another_window_is_not_overwritten(store: Store) -> None:
    client = signed_in(store, "ana")
    version = client.get("/api/next").json()["task"]["version"]

    def put(reason: str, version: float, *, final: bool = False) -> Any:
        return client.put("/api/tasks/1", json=body(reason=reason, final=final) | {"version": version})

    first = put("first window", version)
    assert first.status_code == 200
    assert put("second window", version).status_code == 409
    assert put("second window", version, final=True).status_code == 409
    assert store.saved(1, "ana").submission.reason == "first window"  # type: ignore[union-attr]
    assert put("first window", version).status_code == 200, "a request that is sent again changes nothing"
    latest = client.get("/api/tasks/1").json()["task"]["version"]
    assert put("second window", latest, final=True).status_code == 200
    final = client.get("/api/tasks/1").json()["task"]["version"]
    draft = put("a draft does not replace it", final)
    assert (draft.status_code, draft.json()) == (200, {"version": None})
    assert store.saved(1, "ana").submission.reason == "second window"  # type: ignore[union-attr]


def test_an_adjudicator_has_drafts_and_sees_decisions_again(store: Store) -> None:
    for name, strength in (("ana", -3), ("ben", 3), ("cy", 1)):
        store.add_annotator(name)
        store.save(1, name, submission(strength), final=True, seconds=1)
    client = signed_in(store, "dora", adjudicates=True)
    assert client.put("/api/tasks/1", json=body(reason="half a", final=False)).json()["version"] > 0
    task = client.get("/api/next").json()["task"]
    assert (task["submission"]["reason"], task["final"]) == ("half a", False)
    assert store.adjudications() == {}
    assert len(store.annotations()) == 3, "a draft is no annotation"
    assert client.put("/api/tasks/1", json=body(reason="Decided.")).status_code == 200
    task = client.get("/api/tasks/1").json()["task"]
    assert (task["submission"]["reason"], task["final"]) == ("Decided.", True)
    assert client.put("/api/tasks/1", json=body(reason="later", final=False)).json() == {"version": None}
    stale = body(reason="from another window") | {"version": task["version"] - 1}
    assert client.put("/api/tasks/1", json=stale).status_code == 409
    assert store.adjudications()[1].reason == "Decided."


def test_a_page_that_was_open_for_days_still_saves(store: Store) -> None:
    client = signed_in(store, "ana")
    assert client.put("/api/tasks/1", json=body() | {"seconds": 900_000}).status_code == 200
    assert store.saved(1, "ana").seconds == 86_400  # type: ignore[union-attr]


def test_a_token_that_no_header_could_hold(store: Store) -> None:
    client = TestClient(build_app(store, Settings()))
    sent = client.post("/api/session", content=b'{"token": "\\ud83d"}', headers=JSON)
    assert sent.status_code == 422


def test_a_number_that_no_task_can_have(store: Store) -> None:
    client = signed_in(store, "ana")
    assert {client.get(f"/api/tasks/{n}").status_code for n in (0, -1, 4, 10**30)} == {404}


def test_two_projects_on_one_host_keep_their_sessions(store: Store, tmp_path: Path) -> None:
    """Browsers send the cookies of all ports of a host to each of them."""
    other = Store(tmp_path / "other.db")
    assert cookie_of(other) != cookie_of(store) == cookie_of(Store(tmp_path / "a.db"))
    session = signed_in(store, "ana").get("/api/session").json()
    assert session == {"name": "ana", "adjudicates": False, "project": store.project}


def test_a_failed_save_is_an_error_on_the_page(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from sqlalchemy.exc import OperationalError

    client = signed_in(store, "ana")

    def full(*_: Any, **__: Any) -> None:
        raise OperationalError("INSERT", {}, Exception("database or disk is full"))

    monkeypatch.setattr(Store, "save", full)
    answer = client.put("/api/tasks/1", json=body())
    assert (answer.status_code, "disk is full" in answer.json()["detail"]) == (507, True)
