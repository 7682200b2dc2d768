"""The report in a real browser: charts drawn, scripts without an error, nothing loaded from anywhere."""

from __future__ import annotations

import html
import json
import re
import runpy
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf.report import write_report

MAKERS = runpy.run_path(str(Path(__file__).parents[1] / "unit" / "report" / "conftest.py"))
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--virtual-time-budget=5000",
]
HOSTILE = '<script>document.body.dataset.pwned = "yes"</script><img src="https://example.org/x.png">'

pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no chromium, chromium-browser or google-chrome on PATH"
)

Browse = Callable[..., str]


@pytest.fixture
def browse(tmp_path: Path) -> Browse:
    """`browse(page, *flags)`: what a fresh browser prints, by default the page after its scripts ran."""

    def run(page: Path, *flags: str) -> str:
        profile = f"--user-data-dir={tmp_path / 'profile'}"
        done = subprocess.run(
            [str(BROWSER), *QUIET, profile, *(flags or ("--dump-dom",)), page.as_uri()],
            capture_output=True,
            text=True,
            timeout=90,
            check=True,
        )
        return done.stdout

    return run


def with_script(page: Path, script: str) -> Path:
    """A copy without the security policy, and with one more script that plays the reader."""
    text = re.sub(r"<meta http-equiv.*?>", "", page.read_text(encoding="utf-8"))
    copy = page.with_name("played.html")
    copy.write_text(text.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    return copy


def body(dom: str) -> str:
    """The body's own tag, where the scripts leave what happened."""
    result = re.search(r"<body[^>]*>", dom)
    assert result
    return result[0]


def paths(dom: str, kind: str) -> list[str]:
    """The path data of all lines, dots or bars that have any."""
    return re.findall(rf'<path class="{kind} s\d[^"]*" d="(M[^"]+)"', dom)


def loads(dom: str) -> list[str]:
    """Every address in a place that a browser would fetch or follow."""
    tags = re.findall(r"<[a-z][^>]*>", dom)
    addresses = [url for tag in tags for url in re.findall(r'(?:src|href|action|data)\s*=\s*"([^"]*)"', tag)]
    styles = re.findall(r"<style>.*?</style>", dom, re.DOTALL)
    return [address for address in addresses if address != "data:,"] + re.findall(
        r"url\(|@import", "".join(styles)
    )


def policy_run(path: Path) -> Path:
    """A policy run of 60 steps, beside its reward model, with a hostile answer."""
    judge = MAKERS["make_reward_run"](path / "reward")
    result: dict[str, Any] = MAKERS["policy_evaluation"]()
    result["answers"][5]["after"]["answer"] = HOSTILE
    made: Path = MAKERS["make_policy_run"](path / "policy", evaluation=result, reward=str(judge / "final"))
    return made


def test_policy_page_in_a_browser(tmp_path: Path, browse: Browse) -> None:
    dom = browse(write_report(policy_run(tmp_path)))
    assert 'data-ready="true"' in body(dom)
    assert "data-error" not in body(dom)
    assert "data-pwned" not in body(dom)
    assert html.escape(HOSTILE, quote=False) in dom
    assert loads(dom) == []
    # reward, gold, 2 x KL, KL per answer, length, finished, entropy, 2 x engine, gradient norm; then "more
    # curves"
    assert len(paths(dom, "line")) >= 11
    assert len(paths(dom, "bar")) >= 4
    assert re.search(r'class="sentence">Gold score rose from 0\.\d+ to 0\.\d+ \(\+0\.\d+, 95', dom)
    shown = re.findall(r"<article data-gold[^>]*>", dom)
    assert len(shown) == 64
    assert sum("hidden" not in tag for tag in shown) == 12
    assert "The reward model it learnt from" in dom
    assert "multi-turn" in dom


def test_reward_page_in_a_browser(tmp_path: Path, browse: Browse) -> None:
    dom = browse(write_report(MAKERS["make_reward_run"](tmp_path / "reward")))
    assert 'data-ready="true"' in body(dom)
    assert "data-error" not in body(dom)
    assert loads(dom) == []
    assert len(paths(dom, "line")) >= 7
    assert "picks the better answer in 66.3" in dom


def test_page_of_a_run_that_has_only_a_config(tmp_path: Path, browse: Browse) -> None:
    run = tmp_path / "young"
    run.mkdir()
    (run / "config.yaml").write_text("reward: runs/none/final\nsteps: 10\n", encoding="utf-8")
    dom = browse(write_report(run))
    assert 'data-ready="true"' in body(dom)
    assert "data-error" not in body(dom)
    assert "No verdict yet" in dom


def test_the_page_reports_its_own_script_errors(tmp_path: Path, browse: Browse) -> None:
    page = write_report(policy_run(tmp_path))
    assert 'data-error="Uncaught' in body(browse(with_script(page, "nowhere.to.be.found()")))


def test_no_other_script_may_run(tmp_path: Path, browse: Browse) -> None:
    page = write_report(policy_run(tmp_path))
    injected = page.read_text(encoding="utf-8").replace("</main>", HOSTILE + "</main>")
    page.write_text(injected, encoding="utf-8")
    dom = browse(page)
    assert "data-pwned" not in body(dom)
    assert "blocked: " in body(dom)


def test_readers_find_bad_answers_and_values(tmp_path: Path, browse: Browse) -> None:
    """Worst first, by reward, all of them; then the pointer on the first chart and the arrow keys."""
    play = """
      const click = (selector) => document.querySelector(selector).click();
      const cards = () => [...document.querySelectorAll(".pairs article")];
      const by = (name) => cards().map((card) => Number(card.dataset[name]));
      const out = {};
      click("[data-order=worst]"); out.worstGold = by("gold");
      click("[data-by=reward]"); out.worstReward = by("reward");
      click("[data-order=best]"); out.bestReward = by("reward");
      click(".further button"); out.more = cards().filter((card) => !card.hidden).length;
      click(".further button + button"); out.all = cards().filter((card) => !card.hidden).length;
      const figure = document.querySelector("figure");
      const svg = figure.querySelector("svg");
      const box = svg.getBoundingClientRect();
      svg.dispatchEvent(new PointerEvent("pointermove", { clientX: box.right, clientY: box.top + 20 }));
      out.tip = figure.querySelector(".tip").textContent.replace(/\\s+/g, " ").trim();
      svg.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowLeft" }));
      out.before = figure.querySelector(".at").textContent;
      document.body.dataset.out = JSON.stringify(out);
    """
    run = policy_run(tmp_path)
    dom = browse(with_script(write_report(run), play))
    written = re.search(r'data-out="([^"]*)"', body(dom))
    assert written, body(dom)
    out = json.loads(html.unescape(written[1]))
    answers = json.loads((run / "eval.json").read_text(encoding="utf-8"))["answers"]
    gains = {
        name: sorted(round(row["after"][name] - row["before"][name], 6) for row in answers)
        for name in ("gold", "reward")
    }
    assert out["worstGold"] == gains["gold"]
    assert out["worstReward"] == gains["reward"]
    assert out["bestReward"] == gains["reward"][::-1]
    assert (out["more"], out["all"]) == (24, 64)
    last = json.loads((run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert out["tip"].startswith("step 60 reward")
    assert float(out["tip"].split("reward")[1].replace("\N{MINUS SIGN}", "-")) == pytest.approx(
        last["reward/mean"], rel=6e-3
    )
    assert out["before"] == "step 59"


@pytest.mark.parametrize("width", [420, 1200])
def test_screenshot_is_taken(tmp_path: Path, browse: Browse, width: int) -> None:
    picture = tmp_path / "page.png"
    browse(write_report(policy_run(tmp_path)), f"--window-size={width},1600", f"--screenshot={picture}")
    data = picture.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(data[16:20], "big") == width
    assert len(data) > 40_000, "an empty page compresses to less"


@pytest.mark.parametrize("width", [420, 1200])
def test_nothing_is_wider_than_the_window(tmp_path: Path, browse: Browse, width: int) -> None:
    play = "document.body.dataset.wide = document.documentElement.scrollWidth - window.innerWidth;"
    page = with_script(write_report(policy_run(tmp_path)), play)
    dom = browse(page, f"--window-size={width},1600", "--dump-dom")
    assert 'data-wide="0"' in body(dom)
