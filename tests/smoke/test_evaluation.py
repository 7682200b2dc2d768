"""generate, compare, frontier and chat through the real command line, on the tiny base."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from policy.shared_base import SharedBase
from rlhf import cli
from rlhf.models.chat import Chat

Rlhf = Callable[..., Result]

MT_BENCH = [
    {"question_id": 1, "category": "math", "turns": ["What is 2 + 2?", "And 3 + 3?"]},
    {"question_id": 2, "category": "writing", "turns": ["Write on tea.", "Now on rain."]},
    {"question_id": 3, "category": "stem", "turns": [" ", "Blank."]},
]


@pytest.fixture(scope="module")
def final(tiny_base: Path, tiny_chat: Chat, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `final/` folder of a policy with random weights on the tiny base."""
    import torch

    from policy.save import save_final
    from rlhf.config.policy import PolicyConfig
    from rlhf.models.loading import load_causal, lora_config, with_adapter

    causal = load_causal(str(tiny_base), revision=None, dtype="float32", quantization="none")
    model: Any = with_adapter(causal, lora_config(rank=4, alpha=8, dropout=0.0, targets="all-linear"))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.empty(parameter.shape).normal_(0, 0.2, generator=generator))
    folder = tmp_path_factory.mktemp("runs") / "mine" / "final"
    config = PolicyConfig.model_validate(
        {
            "output": "unused",
            "model": {"base": str(tiny_base), "dtype": "float32"},
            "reward": "r",
            "data": {"prompts": [{"path": "demo"}]},
        }
    )
    save_final(config, model, tiny_chat, folder)
    return folder


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    file = tmp_path / "question.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in MT_BENCH))
    return file


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"Tell me about {topic}."} for topic in ("tea", "rain", "lamps", "rivers")]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def flat(text: str) -> str:
    return " ".join(text.split())


def test_generate_for_mt_bench(rlhf_command: Rlhf, final: Path, questions: Path, tmp_path: Path) -> None:
    output = tmp_path / "tiny.jsonl"
    words = ("generate", final, "--prompts", questions, "--format", "mt-bench", "--output", output)
    result = rlhf_command(*words, "--samples", 2, "--max-new-tokens", 5)
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(row["question_id"], row["model_id"]) for row in rows] == [(1, "tiny"), (2, "tiny")]
    assert all(len(choice["turns"]) == 2 for row in rows for choice in row["choices"])
    greedy, drawn = (row["choices"] for row in rows)
    assert greedy[0]["turns"] == greedy[1]["turns"]  # math is answered at temperature 0
    assert drawn[0]["turns"] != drawn[1]["turns"]
    printed = flat(result.output)
    assert "3 rows read, 2 kept, 1 dropped" in printed and f"blank prompt: {questions}:3" in printed
    assert "answers were cut off at 5 tokens" in printed
    assert sorted(file.name for file in tmp_path.iterdir()) == ["question.jsonl", "tiny.jsonl"]
    assert rlhf_command(*words, "--samples", 2, "--max-new-tokens", 5).exit_code == 0
    again = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["choices"] for row in again] == [row["choices"] for row in rows]


def test_generate_and_compare_files(
    rlhf_command: Rlhf, final: Path, tiny_base: Path, tiny_reward: Path, prompts: Path, tmp_path: Path
) -> None:
    files = {"a.jsonl": final, "b.jsonl": tiny_base}
    for name, model in files.items():
        words = ("generate", model, "--prompts", prompts, "--format", "jsonl", "--output", tmp_path / name)
        result = rlhf_command(*words, "--samples", 4, "--max-new-tokens", 6, "--batch", 2)
        assert result.exit_code == 0, result.output
    output = tmp_path / "compared"
    words = ("compare", tmp_path / "a.jsonl", tmp_path / "b.jsonl", "--reward", tiny_reward)
    result = rlhf_command(*words, "--best-of", "1,2,4", "--held-out", tiny_reward, "--output", output)
    assert result.exit_code == 0, result.output
    assert sorted(file.name for file in output.iterdir()) == [
        "compare.json", "compare.svg", "compare_rows.jsonl", "report.html",
    ]  # fmt: skip
    content = json.loads((output / "compare.json").read_text())
    assert (
        content["names"] == ["a.jsonl", "b.jsonl"]
        and content["samples"] == [4, 4]
        and content["prompts"] == 4
    )
    judged, held_out = content["judges"]["reward"], content["judges"]["held_out"]
    assert judged["win_rate"] == held_out["win_rate"]  # the same model judges twice
    assert judged["difference"]["mean"] == pytest.approx(judged["a"]["mean"] - judged["b"]["mean"])
    assert [point["n"] for point in content["best_of"]] == [1, 2, 4]
    means = [point["reward"]["mean"] for point in content["best_of"]]
    assert means == sorted(means) and means[0] == pytest.approx(judged["b"]["mean"])
    rows = [json.loads(line) for line in (output / "compare_rows.jsonl").read_text().splitlines()]
    assert [len(row["a"]) for row in rows] == [4] * 4 and set(rows[0]["a"][0]) == {
        "answer",
        "reward",
        "held_out",
    }
    page = (output / "report.html").read_text()
    assert "Tell me about lamps." in page and "At equal lengths" in page


def test_compare_a_policy_with_its_base_on_one_base(
    rlhf_command: Rlhf,
    final: Path,
    tiny_base: Path,
    tiny_reward: Path,
    prompts: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A policy against itself has the same answers; against the base, all share one base."""
    words = ("--prompts", prompts, "--reward", tiny_reward, "--samples", 1, "--max-new-tokens", 6)
    same = rlhf_command("compare", final, final, *words)
    assert same.exit_code == 0, same.output
    assert "mine (A) against mine (B), 4 prompts" in flat(same.output.replace("│", "").replace("┃", ""))
    assert "50.0\N{NO-BREAK SPACE}%" in same.output
    loaded, load = [], SharedBase.load

    def noted(**options: Any) -> SharedBase:
        loaded.append(options["dtype"])
        return load(**options)

    monkeypatch.setattr(SharedBase, "load", noted)
    monkeypatch.setattr("reward.load_scorer.load_scorer", lambda *_, **__: pytest.fail("a base of its own"))
    against = rlhf_command("compare", final, tiny_base, *words)
    assert against.exit_code == 0, against.output
    assert loaded == ["float32"]  # as the policy was trained, for both sides and the reward model


def test_frontier_of_a_run(rlhf_command: Rlhf, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("reward: r\nseed: 0\nalgorithm: {name: rloo, kl: {coefficient: 0.05}}\n")
    rows = [{"step": step, "kl/sum": step - 1.0, "reward/mean": 2.0 + step} for step in (1, 2, 3)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = rlhf_command("frontier", run, "--kl", "0.5,1.5", "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "out" / "frontier.json").read_text())
    (levels,) = content["at_equal_kl"]["reward"].values()
    assert [level["mean"] for level in levels] == [3.5, 4.5]
    assert "has no evaluation yet" in flat(result.output)
    assert (
        rlhf_command("frontier", run, "--output", tmp_path / "out").exit_code == 0
    )  # drawn again, over the last


def test_chat_through_a_pipe(final: Path, tiny_reward: Path) -> None:
    words = ["chat", str(final), "--base", "--reward", str(tiny_reward), "--max-new-tokens", "4"]
    typed = "Hello\n\n/what\nAnd again\n/reset\nHello\n/quit\nnot read\n"
    result = CliRunner().invoke(cli.app, words, input=typed, prog_name="rlhf")
    assert result.exit_code == 0, result.output
    assert result.output.count("mine:") == result.output.count("base:") == 3
    assert result.output.count("reward ") == 6
    assert "unknown command /what" in flat(result.output)
    assert "A new conversation." in result.output and "not read" not in result.output


def test_chat_ends_a_conversation_that_is_too_long(tiny_base: Path) -> None:
    typed = "word " * 600 + "\nHello\n"
    words = ["chat", str(tiny_base), "--max-new-tokens", "4"]
    result = CliRunner().invoke(cli.app, words, input=typed, prog_name="rlhf")
    assert result.exit_code == 0, result.output
    assert "512 tokens, the context of the base" in flat(result.output)
    assert result.output.count("base:") == 2  # the second line is answered: what did not fit is forgotten


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "mt"], "--format mt "),
        (["--format", "arena-hard"], "arena-hard"),
        (["--format", "mt-bench", "--engine", "vlm"], "'vllm'"),
        (["--format", "mt-bench", "--max-new-tokens", "600"], " 0 kept"),
    ],
)
def test_what_generate_refuses(
    words: list[str], message: str, rlhf_command: Rlhf, tiny_base: Path, questions: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.jsonl"
    result = rlhf_command("generate", tiny_base, "--prompts", questions, "--output", output, *words)
    assert result.exit_code == 2, result.output
    assert message in flat(result.output)
    assert not output.exists()


def test_what_compare_refuses(rlhf_command: Rlhf, tiny_base: Path, tiny_reward: Path, tmp_path: Path) -> None:
    answers = tmp_path / "a.jsonl"
    answers.write_text('{"prompt": "Why?", "answers": ["So."]}\n')
    cases = {
        (tiny_base, tiny_base): "candidate",
        (answers, answers, "--best-of", "1,2"): "--best-of needs 2",
        (answers, answers, "--best-of", "1,x"): "--best-of 1,x ",
        (tmp_path / "none" / "final", answers): "none/final",
        (answers, tmp_path / "none.jsonl"): "none.jsonl",
    }
    for words, message in cases.items():
        result = rlhf_command("compare", *words, "--reward", tiny_reward)
        assert result.exit_code == 2, result.output
        assert message in flat(result.output)


def test_what_frontier_refuses(rlhf_command: Rlhf, tmp_path: Path) -> None:
    for words, message in (
        ((tmp_path / "none",), "none"),
        ((tmp_path, "--kl", "1,-2"), "--kl 1,-2 "),
    ):
        result = rlhf_command("frontier", *words, "--output", tmp_path / "out")
        assert result.exit_code == 2, result.output
        assert message in flat(result.output)
