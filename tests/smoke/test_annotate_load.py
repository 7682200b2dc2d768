"""The annotation server under 64 clients at once: no error, and every annotation as it was sent."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from rlhf.annotate.app import is_swapped
from rlhf.annotate.store import Store
from rlhf.core.records import HELPSTEER_ATTRIBUTES
from tests.smoke.test_annotate_browser import Server, rows

CLIENTS, TASKS, PER_TASK, SECONDS = 64, 400, 9, 60
STRENGTHS = (-3, -2, -1, 1, 2, 3)


def sent(person: int, task: int) -> dict[str, Any]:
    """A submission that only this person sends for this task."""
    ratings = {name: (person + task + place) % 5 for place, name in enumerate(HELPSTEER_ATTRIBUTES)}
    return {
        "strength": STRENGTHS[(person * 7 + task) % 6],
        "ratings_1": ratings,
        "ratings_2": {name: (value + 1) % 5 for name, value in ratings.items()},
        "reason": f"person {person}, task {task}",
    }


@pytest.mark.slow
def test_64_clients_for_a_minute(tmp_path: Path) -> None:
    people = [f"p{number}" for number in range(CLIENTS)]
    server = Server(tmp_path, rows(TASKS), people, per_task=PER_TASK)
    deadline = time.monotonic() + SECONDS

    def client(person: int) -> tuple[int, set[int]]:
        """Annotates until the time is over; returns the number of requests and the tasks."""
        requests, done = 1, set[int]()
        with httpx.Client(base_url=server.url, timeout=120) as web:
            token = {"token": server.tokens[people[person]]}
            assert web.post("/api/session", json=token).status_code == 200
            while time.monotonic() < deadline:
                answer = web.get("/api/next")
                requests += 1
                assert answer.status_code == 200, answer.text
                if (task := answer.json()["task"]) is None:
                    assert web.get("/api/progress").status_code == 200
                    continue
                number = task["number"]
                for final in (False, True):  # a draft, then the submission
                    body = {"submission": sent(person, number), "final": final, "seconds": 1.0}
                    saved = web.put(f"/api/tasks/{number}", json=body)
                    requests += 1
                    assert saved.status_code == 200, saved.text
                done.add(number)
        return requests, done

    try:
        with ThreadPoolExecutor(CLIENTS) as pool:
            results = list(pool.map(client, range(CLIENTS)))
    finally:
        server.kill()
    annotations = Store(server.store).annotations()
    stored = {(a.annotator, a.task): a.submission for a in annotations}
    assert len(stored) == len(annotations) == sum(len(done) for _, done in results) > CLIENTS
    for person, (_, done) in enumerate(results):
        for task in done:
            shown = stored[people[person], task]
            shown = shown.swapped() if is_swapped(task, people[person], 0) else shown
            assert shown.model_dump() == sent(person, task)
    by_task = [sum(a.task == task for a in annotations) for task in range(1, TASKS + 1)]
    assert max(by_task) <= PER_TASK
    print(f"{sum(requests for requests, _ in results)} requests, {len(annotations)} annotations")
