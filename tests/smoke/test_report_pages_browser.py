"""Comparison page, sample browser and live page in a real browser: desktop and phone, dark and light,
keyboard."""

from __future__ import annotations

import json
import runpy
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlhf.report import write_report
from rlhf.report.comparisons.several import write_several
from tests.browser import BROWSER, NO_BROWSER, Browser, Page

pytestmark = pytest.mark.skipif(BROWSER is None, reason=NO_BROWSER)
MAKERS = runpy.run_path(str(Path(__file__).parents[1] / "unit" / "report" / "conftest.py"))
HOSTILE = '</script><script>document.body.dataset.pwned = "yes"</script><img src=x onerror=alert(1)>'
SAMPLES = 10_000


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def sample(number: int) -> dict[str, Any]:
    answer = (
        HOSTILE
        if number == 5_000
        else f"Answer {number}, with the word {'quince' if number % 1000 == 7 else 'apple'}."
    )
    return {
        "step": 1 + number // 100,
        "prompt": [{"role": "user", "content": f"Question {number}?"}],
        "answer": answer,
        "reward": (number % 100) / 10,
        "gold": None,
        "kl": 0.5,
        "length": number % 77,
        "finished": number % 4 != 0,
    }


@pytest.fixture(scope="module")
def big_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run: Path = MAKERS["make_policy_run"](tmp_path_factory.mktemp("big") / "policy")
    (run / "samples.jsonl").write_text("".join(json.dumps(sample(i)) + "\n" for i in range(SAMPLES)))
    return run


def dark(page: Page) -> None:
    page.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])


def fits(page: Page) -> bool:
    """Whether nothing makes the page scroll sideways."""
    return bool(page.js("document.documentElement.scrollWidth <= window.innerWidth"))


def test_ten_thousand_samples_are_searched_filtered_and_drawn_lazily(
    big_run: Path, browser: Browser, tmp_path: Path
) -> None:
    page = browser.page(write_report(big_run).as_uri())
    page.wait(
        "document.body.dataset.ready === 'true' && document.querySelectorAll('#sample-list "
        "article').length > 0"
    )
    count = "document.getElementById('sample-count').textContent"
    articles = "document.querySelectorAll('#sample-list article').length"
    assert page.js(count) == "10,000 of 10,000 samples"
    assert page.js(articles) == 20
    page.key("/")
    page.type("quince")
    page.wait(f"{count} === '10 of 10,000 samples'")  # numbers 7, 1007, ... 9007
    assert page.js("document.querySelector('#sample-list article').innerText").count("9007") == 2
    page.key("Escape")
    page.wait(f"{count}.startsWith('10,000')")
    started = time.monotonic()
    page.js(
        "(() => "
        "{ const f = document.getElementById('sample-finished'); f.value = 'false';"
        " f.dispatchEvent(new Event('change')); })()"
    )
    assert page.js(count) == "2,500 of 10,000 samples"
    assert time.monotonic() - started < 5
    page.js(
        "(() => "
        "{ const f = document.getElementById('sample-least'); f.value = '9.5';"
        " f.dispatchEvent(new Event('input')); })()"
    )
    assert (
        page.js(count) == "100 of 10,000 samples"
    )  # of the last five of a hundred, one is a multiple of four
    page.js("document.getElementById('sample-more').click()")
    assert page.js(articles) == 40
    page.js("document.getElementById('browser').scrollIntoView()")
    page.screenshot(tmp_path / "samples.png")
    page.size(390, 844)
    dark(page)
    assert fits(page)
    page.js("document.getElementById('browser').scrollIntoView()")
    page.screenshot(tmp_path / "samples-phone-dark.png")


def test_a_hostile_sample_stays_text(big_run: Path, browser: Browser) -> None:
    page = browser.page(write_report(big_run).as_uri())
    page.wait("document.body.dataset.ready === 'true'")
    page.js(
        "(() => "
        "{ const q = document.getElementById('sample-query'); q.value = 'onerror';"
        " q.dispatchEvent(new Event('input')); })()"
    )
    page.wait("document.getElementById('sample-count').textContent.startsWith('1 of')")
    assert page.js("document.querySelector('#sample-list').textContent").count(HOSTILE) == 1
    assert page.js("document.body.dataset.pwned") is None
    assert page.js("document.body.dataset.error") is None


def test_runs_side_by_side(browser: Browser, tmp_path: Path) -> None:
    runs = []
    for name, rank in (("a", 16), ("b", 64)):
        run = MAKERS["make_policy_run"](tmp_path / name / "policy")
        config = (run / "config.yaml").read_text().replace("rank: 16", f"rank: {rank}")
        (run / "config.yaml").write_text(config)
        runs.append(run)
    page = browser.page(write_several(runs, tmp_path / "runs.html").as_uri())
    page.wait("document.body.dataset.ready === 'true'")
    assert page.js("document.body.dataset.error") is None
    rows = page.js(
        "[...document.querySelectorAll('#difference tr')].slice(1).map(row => row.innerText.split('\\t'))"
    )
    assert rows == [["adapter.rank", "16", "64"]]
    first = "document.querySelector('#curves figure')"
    assert page.js(f"[...{first}.querySelectorAll('path.line')].filter(p => p.getAttribute('d')).length") >= 2
    page.js(f"{first}.querySelector('svg[role=img]').focus()")
    page.key("ArrowRight")
    assert "a/policy" in page.js(f"{first}.querySelector('.tip.on').innerText")
    assert fits(page)
    page.js("scrollTo(0, 0)")
    page.screenshot(tmp_path / "runs.png")
    page.size(390, 844)
    dark(page)
    assert fits(page)
    page.js("scrollTo(0, 0)")
    page.screenshot(tmp_path / "runs-phone-dark.png")


def test_a_watched_page_loads_itself_again_but_not_under_a_reader_who_types(
    browser: Browser, tmp_path: Path
) -> None:
    run = MAKERS["make_policy_run"](tmp_path / "policy")
    page = browser.page(write_report(run, live=3).as_uri())
    query = "document.getElementById('sample-query')"
    page.wait(f"{query} && ({query}.focus(), document.activeElement === {query})")
    page.type("apple")
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 61, "reward/mean": 9.0}) + "\n")
    write_report(run)  # the last version, which does not reload
    time.sleep(4)
    assert page.js("document.getElementById('sample-query').value") == "apple"
    page.js("document.activeElement.blur()")
    page.wait("document.body?.dataset.live === '' && document.body.innerText.includes('61')")


def test_the_kl_of_each_token_is_coloured_and_in_words(browser: Browser, tmp_path: Path) -> None:
    run: Path = MAKERS["make_policy_run"](tmp_path / "policy")
    row = sample(1) | {
        "tokens": ["A", HOSTILE, "\n", " b"],
        "token_kl": [0.05, 2.0, -0.3, -0.7],
        "token_reward": [-0.0005, -0.02, 0.003, 0.507],
        "token_value": [0.3, 0.3, 0.4, 0.6],
        "length": 4,
    }
    (run / "samples.jsonl").write_text(json.dumps(sample(0)) + "\n" + json.dumps(row) + "\n")
    page = browser.page(write_report(run).as_uri(), width=390, height=844)
    page.wait("document.querySelectorAll('#sample-list article').length === 2")
    tokens = page.js("document.querySelectorAll('#sample-list .tokens').length")
    assert tokens == 1, "one has its tokens"
    for mode in (lambda _: None, dark):
        mode(page)
        page.js("document.querySelector('#sample-list details').open = true")
        spans = "[...document.querySelectorAll('#sample-list details .text span')]"
        assert page.js(f"{spans}.map((s) => s.className)") == ["", "more3", "less1", "less2"]
        assert page.js(f"{spans}.map((s) => s.title)")[0] == "KL +0.05, Reward −0.0005, Value +0.3"
        colours = page.js(f"{spans}.map((s) => getComputedStyle(s).backgroundColor)")
        assert len(set(colours)) == 4
        words = page.js("document.querySelector('#sample-list details .unit').textContent")
        assert "“b” −0.7, “white space” −0.3, “A” +0.05. Sum, the KL of the answer: +1.05." in words
        assert fits(page)
        # Rewards are coloured on the scale of the KL penalties; the last token has the answer's reward.
        page.js("document.querySelector('.kinds [data-kind=reward]').click()")
        assert page.js(f"{spans}.map((s) => s.className)") == ["", "less3", "more1", "more3"]
        assert "Sum: +0.489." in page.js("document.querySelector('#sample-list details .unit').textContent")
        page.js("document.querySelector('.kinds [data-kind=value]').click()")
        assert page.js(f"{spans}.map((s) => s.className)") == ["more2", "more2", "more2", "more3"]
        page.js("document.querySelector('.tokens details').open = true")
        page.wait("document.querySelector('.tokens table')")
        cells = (
            "[...document.querySelectorAll('.tokens tr')].map((r) => [...r.cells].map((c) => c.textContent))"
        )
        assert page.js(cells)[0] == ["token", "KL", "Reward", "Value"]
        assert page.js(cells)[2:4] == [[HOSTILE, "+2", "−0.02", "+0.3"], ['"\\n"', "−0.3", "+0.003", "+0.4"]]
        assert fits(page)
        page.js("document.querySelector('.kinds [data-kind=kl]').click()")
    assert page.js("document.body.dataset.pwned") is None
