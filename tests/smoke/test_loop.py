"""docs/loop.md, executed: chat, annotate, train-reward, align-policy, compare, annotate what is left."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from rlhf.annotate.store import Store
from tests.browser import BROWSER, NO_BROWSER, Browser
from tests.smoke.test_annotate_browser import annotate, enter

ROOT = Path(__file__).parents[2]
TINY = ("model.dtype=float32", "save_every=2")
SMALL = {
    "train-reward": ("stages.0.max_steps=2", "validate_every=2", *TINY),
    "align-policy": (
        "rollouts.engine=transformers",
        "rollouts.prompts_per_step=4",
        "rollouts.max_new_tokens=8",
        "steps=2",
        "evaluation.prompts=6",
        *TINY,
    ),
    "compare": ("--max-new-tokens", "8"),
    "chat": ("--max-new-tokens", "16", "--temperature", "1", "--port", "0"),
    "serve": ("--port", "0"),
}
"""What makes a documented command fit a test."""
HOSTILE = "<script>document.body.dataset.pwned=1</script> Tell me about tea. 🙂"

pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason=NO_BROWSER)]


class Folder:
    """An empty folder with the configs, in which commands run on the tiny base."""

    def __init__(self, path: Path, base: Path) -> None:
        self.path, self.base = path, base
        (path / "configs").symlink_to(ROOT / "rlhf" / "configs")
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def words(self, documented: Sequence[str]) -> list[str]:
        command = next(word for word in documented if word in SMALL or word in ("status", "export"))
        small = SMALL.get(command, ())
        base = (f"model.base={self.base}",) if command in ("train-reward", "align-policy") else ()
        documented = [word.replace("{path: demo,", "{path: demo, limit: 40,") for word in documented]
        return [sys.executable, "-m", *documented, *small, *base]

    def run(self, *documented: str) -> str:
        done = subprocess.run(
            self.words(documented),
            cwd=self.path,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @contextmanager
    def page(self, *documented: str) -> Iterator[tuple[str, str]]:
        """A server, until Ctrl-C: its address, and what it printed."""
        log = self.path / "server.log"
        with log.open("w") as file:
            process = subprocess.Popen(
                self.words(documented), cwd=self.path, env=self.environment, stdout=file, stderr=file
            )
        try:
            while (address := re.search(r"Open (http://\S+)", log.read_text())) is None:
                assert process.poll() is None, log.read_text()
                time.sleep(0.2)
            yield address[1], log.read_text()
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0, log.read_text()
        finally:
            process.kill()
            process.wait()


def documented() -> list[list[str]]:
    text = (ROOT / "docs" / "loop.md").read_text("utf-8")
    blocks = re.findall(r"^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


def test_from_a_chat_to_the_next_policy(tmp_path: Path, tiny_base: Path) -> None:
    folder = Folder(tmp_path, tiny_base)
    demo = "[{path: demo, format: helpsteer2}]"
    pairs_of_demo = demo.replace("helpsteer2", "helpsteer2-preference")
    words = ("configs/reward/demo.yaml", f"data.ratings={demo}", f"data.preferences={pairs_of_demo}")
    folder.run("rlhf", "train-reward", *words, "--output", "runs/demo/reward")
    folder.run("rlhf", "align-policy", "configs/policy/demo.yaml", "--output", "runs/demo/policy")
    chat, serve, status, export, train, align, compare, left = documented()

    with Browser(tmp_path / "profile") as browser:
        with folder.page(*chat) as (url, printed):
            page = browser.page(url)
            token = re.search(r"Token: (\S+)", printed)
            assert token is not None
            page.wait("!document.getElementById('sign-in').hidden")
            page.js("document.getElementById('token').focus()")
            page.type(token[1])
            page.key("Enter")
            page.wait("!document.getElementById('ask').hidden")
            for number in (1, 2, 3):
                page.js("document.getElementById('text').focus()")
                page.type(f"{HOSTILE} {number}")
                page.key("Enter")
                page.wait(f"document.querySelectorAll('.answer button').length === {2 * number}")
            page.js("document.querySelectorAll('.answers + button').forEach((button) => button.click())")
            page.wait(
                "[...document.querySelectorAll('.answers + button')]"
                ".every((button) => button.textContent === 'Sent to annotate')"
            )
            assert page.js("document.body.dataset.pwned") is None
            assert token[1] not in page.js("location.href") and page.js("history.length") <= 2
        pairs = Store(tmp_path / "annotations.db").count_tasks()
        assert pairs >= 1

        with folder.page(*serve) as (url, printed):
            tokens = dict(re.findall(r"Token of (\w+): (\S+)", printed))
            assert list(tokens) == ["ana", "ben", "cy"]
            for name, token_of in tokens.items():
                page = browser.page(url)
                enter(page, token_of)
                while not page.js("document.getElementById('task').hidden"):
                    longer = page.js("task.left >= task.right")
                    annotate(page, "1" if longer else "6", f"{name}: {HOSTILE}")
                assert page.js("document.body.dataset.pwned") is None
        assert f'"complete": {pairs},' in folder.run(*status)
        assert f"Wrote {pairs} preferences ({pairs} with a strength)" in folder.run(*export)
        folder.run(*train)
        folder.run(*align)
        folder.run(*compare)
        report = (tmp_path / "runs" / "loop" / "compared" / "report.html").read_text("utf-8")
        assert "<h2>Answers</h2>" in report
        with folder.page(*left) as (url, printed):
            tasks = re.search(r"(\d+) tasks \((\d+) new\)", printed)
            assert tasks is not None and int(tasks[1]) - int(tasks[2]) == pairs and int(tasks[2]) >= 1
            assert "Token of" not in printed, "people keep theirs"
