"""The annotation page in a real browser: several people at once, a server that is killed, and what is trained
on it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from rlhf.annotate.records import Submission
from rlhf.annotate.store import Store
from rlhf.core.records import HELPSTEER_ATTRIBUTES
from tests.browser import BROWSER, NO_BROWSER, Browser, Page

pytestmark = pytest.mark.skipif(BROWSER is None, reason=NO_BROWSER)
HOSTILE = (
    '<script>document.body.dataset.pwned = "yes"</script><img src=x onerror="document.body.dataset.pwned=1">'
)


class Server:
    """`rlhf annotate serve` on a free port, to be killed and started again on the same store."""

    def __init__(
        self, folder: Path, rows: Sequence[dict[str, object]], people: Sequence[str], per_task: int
    ) -> None:
        (folder / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder, self.store, self.tokens = folder, folder / "a.db", dict[str, str]()
        names = [argument for name in people for argument in ("--annotator", name)]
        self.arguments = ["tasks.jsonl", "--store", str(self.store), "--port", str(self.port), *names]
        self.arguments += ["--per-task", str(per_task)]
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "rlhf.cli", "annotate", "serve", *self.arguments]
        root = str(Path(__file__).parents[2])
        environment = {**os.environ, "PYTHONPATH": root}
        self.process = subprocess.Popen(
            command, cwd=self.folder, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if result := re.match(r"Token of (\w+): (\S+)", line):
                self.tokens[result[1]] = result[2]
            if line.startswith("Open"):
                break
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError("the server does not listen")

    def kill(self) -> str:
        """End the server at once; returns what it printed after it listened."""
        self.process.send_signal(signal.SIGKILL)
        return (
            ""
            if self.process.stdout is None or self.process.stdout.closed
            else self.process.communicate(timeout=10)[0]
        )


def enter(page: Page, token: str) -> None:
    page.wait("!document.getElementById('sign-in').hidden")
    page.js("document.getElementById('token').focus()")
    page.type(token)
    page.key("Enter")
    page.wait("!document.getElementById('task').hidden || !document.getElementById('done').hidden")


def rate(page: Page) -> None:
    """All ten ratings of a task, as clicks."""
    page.js("document.querySelectorAll('.ratings input[value=\"3\"]').forEach((node) => node.click())")


def annotate(page: Page, key: str, reason: str) -> None:
    """One task by keyboard; ends when the next one, or the end, is shown."""
    number = page.js("task.number")
    page.key(key)
    rate(page)
    page.js("document.getElementById('reason').focus()")
    page.type(reason)
    for _ in range(30):  # a server that is down is tried again, as a person would
        page.key("Enter", control=True)
        for _ in range(20):
            if not page.js(
                f"Boolean(task) && task.number === {number} && !document.getElementById('task').hidden"
            ):
                return
            time.sleep(0.05)
    raise AssertionError(f"task {number} is not submitted: {page.text()[-600:]}")


def rows(count: int) -> list[dict[str, object]]:
    return [
        {
            "prompt": f"Prompt {n} 🙂 שלום",
            "chosen": f"A {n} {HOSTILE}",
            "rejected": f"B {n}" + ("\nשורה 🙂 a line" * 999 if n == 0 else ""),
        }
        for n in range(count)
    ]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path, rows(3), ["ana", "ben"], per_task=2)
    yield running
    running.kill()


def test_two_people_at_once_and_a_killed_server(server: Server, tmp_path: Path) -> None:
    with Browser(tmp_path / "profile") as browser:
        pages = {name: browser.page(server.url) for name in ("ana", "ben")}
        for name, page in pages.items():
            enter(page, server.tokens[name])
            lines = "Math.max(task.left.split('\\n').length, task.right.split('\\n').length)"
            assert page.js(lines) == 1000
            boxes = "[...document.querySelectorAll('.text')].map((box) => box.clientHeight)"
            assert max(page.js(boxes)) < 900, "a long answer scrolls in its box"
        for name, page in pages.items():
            annotate(page, "2", f"{name} {HOSTILE}")
        ana = pages["ana"]
        ana.key("5")
        ana.key("r")
        ana.type("half a sentence")
        ana.wait("document.getElementById('status').textContent === 'Saved.'")
        server.kill()
        ana.type(", and more")
        ana.wait("document.getElementById('status').textContent.startsWith('No connection')")
        server.start()
        ana.send("Page.reload")
        ana.wait("!document.getElementById('task').hidden")
        assert ana.js("document.getElementById('reason').value") == "half a sentence, and more"
        assert ana.js("document.querySelector('input[name=strength]:checked').value") == "2"
        for name, page in pages.items():
            for _ in range(2):
                annotate(page, "6", name)
            page.wait("!document.getElementById('done').hidden")
            assert page.js("document.body.dataset.pwned") is None
    store = Store(server.store)
    done = [(a.task, a.annotator) for a in store.annotations()]
    assert sorted(done) == [(task, name) for task in (1, 2, 3) for name in ("ana", "ben")]
    assert {a.submission.reason for a in store.annotations() if a.task == 1} == {
        f"ana {HOSTILE}",
        f"ben {HOSTILE}",
    }
    log = server.kill()
    assert not any(token in log for token in server.tokens.values())


def test_a_missing_part_is_named_and_the_keyboard_suffices(server: Server, tmp_path: Path) -> None:
    with Browser(tmp_path / "profile") as browser:
        page = browser.page(server.url, width=390, height=844)
        enter(page, server.tokens["ana"])
        assert page.js("document.documentElement.scrollWidth") <= 390, "no sideways scrolling on a phone"
        page.key("1")
        page.key("Enter", control=True)
        page.wait("document.getElementById('status').className === 'bad'")
        assert "coherence, complexity, verbosity of the right response" in page.text()
        page.js("document.querySelector('.ratings input').focus()")
        page.key("6")
        assert page.js("document.querySelector('input[name=strength]:checked').value") == "-3", (
            "no rating is 6"
        )
        for _ in range(10):  # digits rate, Tab goes to the next attribute
            page.key("4")
            page.key("Tab")
        checked = page.js("document.querySelectorAll('.ratings input:checked').length")
        assert checked >= 5
        unlabelled = page.js(
            "[...document.querySelectorAll('input, textarea')].filter((n) => !n.labels.length && "
            "!n.ariaLabel).length"
        )
        assert unlabelled == 0
        # The direction of a text is its own: the role's Latin word is not part of it.
        assert page.js("document.querySelector('#prompt [dir=auto]').textContent.startsWith('Prompt')")
        page.js(
            "show('done'); window.real = window.fetch; window.fetch = async () => new "
            "Response(JSON.stringify({detail: 'Not saved: full'}), {status: 507}); next()"
        )
        page.wait("document.getElementById('done').textContent === 'Not saved: full'")
        page.js("window.fetch = window.real; next()")
        page.wait("!document.getElementById('task').hidden")


REASON = "document.getElementById('reason').value"
STATUS = "document.getElementById('status').textContent"


def write(page: Page, text: str) -> None:
    """Type at the end of the reason, and leave it, so that digits are preferences again."""
    page.js("document.getElementById('reason').focus()")
    page.type(text)
    page.js("document.activeElement.blur()")


def test_two_windows_of_one_person(server: Server, tmp_path: Path) -> None:
    """The last version is not overwritten by a window that shows an older one."""
    with Browser(tmp_path / "profile") as browser:
        laptop, phone = browser.page(server.url), browser.page(server.url)
        enter(laptop, server.tokens["ana"])
        write(laptop, "from the laptop")
        laptop.wait(f"{STATUS} === 'Saved.'")
        enter(phone, server.tokens["ana"])
        assert phone.js(REASON) == "from the laptop"
        write(phone, ", and the phone")
        phone.wait(f"{STATUS} === 'Saved.'")
        write(laptop, "!")
        laptop.wait(f"{STATUS}.startsWith('This task was changed in another window')")
        assert laptop.js(REASON) == "from the laptop, and the phone"
        write(laptop, " And the laptop.")
        laptop.wait(f"{STATUS} === 'Saved.'")
        laptop.send("Page.reload")
        laptop.wait("!document.getElementById('task').hidden")
        assert laptop.js(REASON) == "from the laptop, and the phone And the laptop."
        annotate(laptop, "2", " Done.")
        laptop.js("document.getElementById('back').click()")
        laptop.wait("task.number === 1")
        write(laptop, " A change")
        laptop.wait(f"{STATUS} === 'Submit to replace your earlier answer.'")
        laptop.send("Page.reload")
        laptop.wait("!document.getElementById('task').hidden && task.number !== 1")
    [saved] = Store(server.store).annotations()
    assert saved.submission.reason == "from the laptop, and the phone And the laptop. Done."


def test_an_answer_that_did_not_arrive_is_no_conflict(server: Server, tmp_path: Path) -> None:
    """The server saved a draft and the connection broke: what was typed since is saved, not discarded."""
    with Browser(tmp_path / "profile") as browser:
        page = browser.page(server.url)
        enter(page, server.tokens["ana"])
        page.js(
            "window.real = window.fetch; window.fetch = async (path, options) => {"
            " const answer = await real(path, options);"
            " if (options.method === 'PUT') throw new TypeError('Failed to fetch'); return answer; }"
        )
        write(page, "saved")
        page.wait(f"{STATUS}.startsWith('No connection')")
        page.js("window.fetch = window.real")
        write(page, ", and more")
        page.wait(f"{STATUS} === 'Saved.'")
        assert page.js(REASON) == "saved, and more"
    saved = Store(server.store).saved(1, "ana")
    assert saved is not None
    assert saved.submission.reason == "saved, and more"


def test_a_draft_stays_in_its_project(server: Server, tmp_path: Path) -> None:
    """Another project on the same address has tasks of the same numbers."""
    with Browser(tmp_path / "profile") as browser:
        page = browser.page(server.url)
        enter(page, server.tokens["ana"])
        server.kill()
        write(page, "of the first project")
        page.wait(f"{STATUS}.startsWith('No connection')")
        (first := server.store).rename(first.with_suffix(".first"))
        for rest in first.parent.glob(f"{first.name}-*"):
            rest.unlink()
        server.start()
        page.send("Page.reload")
        enter(page, server.tokens["ana"])
        assert (page.js("task.number"), page.js(REASON)) == (1, "")


def test_an_adjudicator_sees_the_decision_again(server: Server, tmp_path: Path) -> None:
    store = Store(server.store)
    for name, strength in (("ana", -3), ("ben", 3)):
        ratings = dict.fromkeys(HELPSTEER_ATTRIBUTES, 2)
        mark = Submission(strength=strength, ratings_1=ratings, ratings_2=ratings, reason=name)
        for number in (1, 2):
            store.save(number, name, mark, final=True, seconds=1)
    token = store.add_annotator("dora", adjudicates=True)
    with Browser(tmp_path / "profile") as browser:
        page = browser.page(server.url)
        enter(page, token)
        write(page, "half of a decision")
        page.wait(f"{STATUS} === 'Saved.'")
        elsewhere = browser.page(server.url)
        enter(elsewhere, token)
        assert elsewhere.js(REASON) == "half of a decision"
        annotate(page, "2", ", whole")
        page.js("document.getElementById('back').click()")
        page.wait("task.number === 1")
        assert page.js(REASON) == "half of a decision, whole"
        assert page.js("document.querySelectorAll('input:checked').length") == 11
    assert list(store.adjudications()) == [1]


@pytest.mark.slow
def test_two_hundred_annotations_by_four_people_and_two_kills(tmp_path: Path, tiny_base: Path) -> None:
    """None is lost, and the export trains a reward model."""
    people = ["ana", "ben", "cy", "dan"]
    server = Server(tmp_path, rows(50), people, per_task=4)
    stop = threading.Event()

    def kill_twice() -> None:
        for _ in range(2):
            time.sleep(15)
            if stop.is_set():
                return
            server.kill()
            time.sleep(1)
            server.start()

    killer = threading.Thread(target=kill_twice)
    with Browser(tmp_path / "profile") as browser:
        pages = {name: browser.page(server.url) for name in people}
        for name, page in pages.items():
            enter(page, server.tokens[name])
        killer.start()
        for number in range(50):
            for name, page in pages.items():
                side = "1" if page.js("task.left.startsWith('A')") else "6"
                annotate(page, side, f"{name} {number}")
        stop.set()
        killer.join()
    annotations = Store(server.store).annotations()
    server.kill()
    assert len(annotations) == len({(a.task, a.annotator) for a in annotations}) == 200
    assert {a.submission.strength for a in annotations} == {-3}, (
        "all of them prefer A, whatever side it was on"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}

    def rlhf(*arguments: str) -> str:
        command = [sys.executable, "-m", "rlhf.cli", *arguments]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    rlhf("annotate", "export", str(server.store), "exported")
    (tmp_path / "reward.yaml").write_text(
        f"output: run\nmodel: {{base: {tiny_base}, dtype: float32, max_length: 256}}\nadapter: {{rank: 4}}\n"
        "data:\n  preferences: [{path: exported, format: helpsteer2-preference}]\n"
        "  ratings: [{path: exported, format: helpsteer2}]\n"
        "stages:\n"
        "  - {name: hybrid, regression_weight: 1, preference_weight: 1, max_steps: 2, batch_size: 8}\n"
    )
    rlhf("train-reward", "reward.yaml")
    assert (tmp_path / "run" / "final" / "reward.json").is_file()
