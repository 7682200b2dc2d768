"""The chat page in a real browser: streamed answers side by side, hostile text, a pair for annotation."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvicorn

from rlhf.core.records import Conversation
from rlhf.web.chat import Answer, build_app
from tests.browser import BROWSER, NO_BROWSER, Browser

pytestmark = pytest.mark.skipif(BROWSER is None, reason=NO_BROWSER)
TOKEN = "a-token-of-the-test"
HOSTILE = '<img src=x onerror="document.body.dataset.pwned=1"> '


class Echo:
    """Answers with the last message."""

    names = ("policy", "base")

    def answer(
        self, name: str, conversation: Conversation, seed: int, on_text: Callable[[str], None]
    ) -> Answer:
        text = f"{HOSTILE}{name} heard {len(conversation)}: {conversation[-1].content}"
        on_text(text)
        return Answer(text, False, 1.25, {"helpfulness": 1.25})


@pytest.fixture
def kept() -> list[tuple[str, str]]:
    return []


@pytest.fixture
def url(kept: list[tuple[str, str]]) -> Iterator[str]:
    def keep(prompt: Conversation, first: str, second: str) -> bool:
        kept.append((first, second))
        return True

    server = uvicorn.Server(uvicorn.Config(build_app(Echo(), TOKEN, keep), port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


def test_two_turns_side_by_side(url: str, kept: list[tuple[str, str]], tmp_path: Path) -> None:
    with Browser(tmp_path / "profile") as browser:
        page = browser.page(url, width=390, height=844)
        page.wait("!document.getElementById('sign-in').hidden")
        page.js("document.getElementById('token').focus()")
        page.type(TOKEN)
        page.key("Enter")
        page.wait("!document.getElementById('ask').hidden")
        page.type(HOSTILE)
        page.key("Enter")
        page.wait("document.querySelectorAll('.answer button').length === 2")
        assert "reward 1.25" in page.text()
        assert "cut off" in page.text()
        page.js("document.querySelectorAll('.answer button')[1].click()")
        page.js(
            "[...document.querySelectorAll('button')].find((b) => b.textContent.startsWith('Send "
            "this')).click()"
        )
        page.wait(
            "[...document.querySelectorAll('button')].some((b) => b.textContent === 'Sent to annotate')"
        )
        page.js("document.getElementById('text').focus()")
        page.type("second turn")
        page.key("Enter")
        page.wait("document.querySelectorAll('.answer').length === 4")
        page.wait("document.body.innerText.includes('policy heard 3: second turn')")
        assert page.js("document.body.dataset.pwned") is None
        assert page.js("document.documentElement.scrollWidth") <= 390
    ((first, second),) = kept
    assert first.startswith(f"{HOSTILE}policy heard 1")
    assert second.startswith(f"{HOSTILE}base heard 1")
