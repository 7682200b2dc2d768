"""Every `rlhf` command line of README and docs runs, small, or has the reason why it does not.

Placeholders are replaced, and what trains is planned with `--dry-run`: `test_train_reward.py`,
`test_align_policy.py` and the other files of this folder train. Other programs than `rlhf` are listed in
`tests/unit/test_docs.py` (NOT_CHECKED).
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from rlhf import cli
from rlhf.annotate.records import Submission
from rlhf.annotate.store import Store
from rlhf.annotate.tasks import Task
from rlhf.core.records import HELPSTEER_ATTRIBUTES, Message
from tests.unit.test_docs import BY_NAME, ROOT, command_lines

pytestmark = pytest.mark.slow

NOT_EXECUTED = {
    r"local-(pairs|prompts)|runs/(by-data|algorithms)|algorithms\.yaml": "needs data that is not in the "
    "repository",
    r"^(annotate serve|serve-reward|chat .* --web|report --watch)": "a server or a watch; `test_loop.py`, "
    "`test_annotate_browser.py`, `tests/unit/reward/test_server.py` and `test_report_browser.py` start them",
    r"push .*OWNER/NAME( --merged)?$": "needs the Hub: `tests/unit/publish/test_push.py` has a stand-in",
    r"(score|chat|reward=) ?OWNER/NAME": "needs a pushed model: `test_hub_cache.py`",
    r"--(judge|suite|data)|justifier": "needs benchmarks or a judge: `tests/unit/reward/evaluation`",
    r"paper-table|policy-table": "trains for hours: `test_recipes.py` and `test_policy_table.py`, small",
    r"adapter=null|rollouts\.servers|reward=\{server": "needs a model or servers beyond this machine's",
    r"frontier": "needs several runs: `tests/unit/report/test_frontier.py`",
    r"checkpoints/step": "needs a checkpoint of that number: `test_checkpoint_models.py`",
    r"my_rewards\.py": "needs the reader's file: `tests/unit/policy/rewards/test_user_functions.py`",
    r"runs/demo/principle|--principle": "needs a principle model: `test_principle_learning.py`",
    r"(chat|generate|push) runs/dpo|start=runs/ppo": "needs the run of the line before it",
    r"^doctor": "its outcome is the machine's: `tests/unit/commands/test_doctor.py`",
}
"""Commands, by a pattern of their words, that are not executed, and why."""
PLACEHOLDERS = {
    "CONFIG": "configs/policy/demo.yaml",
    "CONFIG.yaml": "configs/policy/demo.yaml",
    "RUN": "runs/demo/policy",
    "MODEL": "runs/demo/reward/final",
}
TRAINING = ("train-reward", "align-policy", "train-dpo", "train-principle", "search")
SMALL = {
    "generate": ["--max-new-tokens", "4"],
    "compare": ["--max-new-tokens", "4", "--best-of", "1,2"],
    "chat": ["--max-new-tokens", "4"],
    "push": ["--base", "OWNER/NAME"],
}


def run(*words: object) -> Result:
    return CliRunner().invoke(cli.app, [str(word) for word in words], prog_name="rlhf")


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory,
    reward_config: Path,
    policy_config: Path,
) -> Path:
    """What the commands expect: configs, the demo's runs (tiny), files of questions and answers, a store."""
    folder = tmp_path_factory.mktemp("docs")
    for name in ("configs", "benchmarks", "docs"):
        (folder / name).symlink_to(ROOT / ("rlhf/configs" if name == "configs" else name))
    for command, config, name in (
        ("train-reward", reward_config, "reward"),
        ("align-policy", policy_config, "policy"),
    ):
        result = run(command, config, "--output", folder / "runs" / "demo" / name)
        assert result.exit_code == 0, result.output
    question = {"question_id": 1, "category": "x", "turns": ["What is tea?", "Shorter."]}
    (folder / "question.jsonl").write_text(json.dumps(question) + "\n")
    turns = [{"role": "user", "content": "What is tea?"}, {"role": "assistant", "content": "A drink."}]
    for name in ("answers.jsonl", "in.jsonl"):
        (folder / name).write_text(json.dumps({"messages": turns}) + "\n")
    (folder / "model_answer").mkdir()
    store = Store(folder / "annotations.db")
    store.add_tasks([Task((Message("user", f"What is tea? {n}"),), "A drink.", "A town.") for n in range(4)])
    ratings = dict.fromkeys(HELPSTEER_ATTRIBUTES, 3)
    submission = Submission(strength=-2, ratings_1=ratings, ratings_2=ratings, reason="It is a drink.")
    for name in ("ana", "ben", "cy"):
        store.add_annotator(name)
        for number in store.tasks():
            store.save(number, name, submission, final=True, seconds=1.0)
    store.close()
    return folder


def reason(words: list[str]) -> str | None:
    """Why a command is not executed."""
    text = " ".join(words)
    return next((why for pattern, why in NOT_EXECUTED.items() if re.search(pattern, text)), None)


def rlhf_lines(name: str) -> list[list[str]]:
    """The words after `rlhf` of each line of a page, placeholders replaced."""
    lines = []
    for words in command_lines(BY_NAME[name]):
        while words and re.match(r"^[A-Z_]+=", words[0]):
            words = words[1:]
        if words and words[0].removeprefix(".venv/bin/") == "rlhf":
            lines.append([PLACEHOLDERS.get(word, word) for word in words[1:] if word != "..."])
    return lines


@pytest.mark.parametrize("name", [name for name in BY_NAME if rlhf_lines(name) and name != "docs/loop.md"])
def test_commands_run(name: str, folder: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")
    for words in rlhf_lines(name):
        if reason(words) is not None:
            continue
        words = [str(tiny_base) if word == "embedded" else word for word in words]
        if words[0] in TRAINING and "--explain" not in words:
            words[1] = words[1].replace("llama-3.1-8b", "demo")  # its base and data are on the Hub
            words += ["--dry-run", "--output", "runs/planned"]
        for option in ("--output", "--copy"):
            target = folder / words[words.index(option) + 1] if option in words else None
            if target is not None and target.exists() and words[0] not in TRAINING:
                shutil.rmtree(target) if target.is_dir() else target.unlink()
        result = run(*words, *SMALL.get(words[0], []))
        assert result.exit_code == 0, f"{name}: rlhf {' '.join(words)}\n{result.output}"


def test_every_reason_is_needed() -> None:
    lines = [" ".join(words) for name in BY_NAME for words in rlhf_lines(name)]
    assert [pattern for pattern in NOT_EXECUTED if not any(re.search(pattern, line) for line in lines)] == []
