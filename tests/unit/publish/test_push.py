"""`rlhf push` against a stand-in of the Hub: what arrives, and what does not."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq
import pytest
import yaml
from huggingface_hub import ModelCard
from pydantic import TypeAdapter

from rlhf.config.rewards import RewardSource
from rlhf.core.errors import OutputError, RunError
from rlhf.models.card import base_literal, is_hub_name, render_card
from rlhf.models.embedded import known_as
from rlhf.models.names import TRAINED_WHOLE
from rlhf.publish.staging import PushedModel, _without_paths, find_model, stage
from rlhf.publish.upload import check_name, push
from tests.unit.publish.conftest import TOKEN, StandIn

REPO = "me/policy"
BASE = "owner/tiny-base"


LOCAL_BASE = "/tmp/models/tiny-base"
WEIGHTS = {"adapter_model.safetensors": bytes(range(256)) * 8, "model.safetensors": b"merged" * 99}


def card_of(folder: Path, library: Literal["peft", "transformers"]) -> str:
    return render_card(
        base=LOCAL_BASE,
        task="text-generation",
        library=library,
        title="Aligned policy",
        summary=f"Begun from the policy `{folder.parent}/first/final`.",
        code=f"base = {LOCAL_BASE!r}\nfolder = {str(folder)!r}",
        datasets=["nvidia/HelpSteer2", "/tmp/data/own.jsonl"],
        sections={"Data": "- /tmp/data/own.jsonl (columns, train)", "Figures": "95 % interval"},
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The files of a policy run whose base is a local folder."""
    folder = tmp_path / "run"
    final = folder / "final"
    final.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"model: {{base: {LOCAL_BASE}}}\n")
    (folder / "environment.json").write_text("{}")
    (folder / ".lock").write_text("1")
    (final / "adapter_model.safetensors").write_bytes(WEIGHTS["adapter_model.safetensors"])
    (final / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": LOCAL_BASE, "r": 4}))
    (final / "policy.json").write_text(json.dumps({"base": LOCAL_BASE, "start": str(folder)}))
    (final / "tokenizer.json").write_text('{"vocab": {"/tmp": 0, "~x": 1}}')
    (final / "optimizer.bin").write_bytes(b"not published")
    (final / "README.md").write_text(card_of(final, "peft"))
    rows = [
        {
            "step": step,
            "prompt": [{"role": "user", "content": "Hi"}],
            "answer": f"No\u2028{step}",  # a line separator, which is no end of a row
            "reward": step,
            "gold": gold,
        }
        for step, gold in ((1, None), (2, 0.5))
    ]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "samples.jsonl").write_text(lines, encoding="utf-8")
    return folder


@pytest.fixture
def merged(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the merge, which tests/smoke/test_export.py tries: a folder as it leaves one."""

    def export(
        model: Path, output: Path, form: object, dtype: str | None, *, reward_only: bool, tolerance: object
    ) -> str:
        output.mkdir()
        (output / "model.safetensors").write_bytes(WEIGHTS["model.safetensors"])
        (output / "config.json").write_text(json.dumps({"_name_or_path": str(output)}))
        (output / "README.md").write_text(card_of(output, "transformers"))
        return f"merged in {dtype}{', with one output' if reward_only else ''}"

    monkeypatch.setattr("rlhf.commands.export.export", export)


def test_an_adapter_arrives_with_card_and_samples_in_a_private_repository(
    run: Path, hub: StandIn, rlhf_command: Callable[..., Any]
) -> None:
    done = rlhf_command("push", run, REPO, "--base", BASE)
    assert done.exit_code == 0, done.output
    assert hub.private[REPO] is True
    files = hub.repos[REPO]
    assert files["adapter_model.safetensors"] == (run / "final" / "adapter_model.safetensors").read_bytes()
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == BASE
    card = ModelCard(files["README.md"].decode())
    assert card.data.base_model == BASE
    assert f"folder = {REPO!r}" in card.text and "95 % interval" in card.text
    rows = pq.read_table(io.BytesIO(files["samples.parquet"])).to_pylist()
    lines = (run / "samples.jsonl").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    written = [json.loads(line) for line in lines]
    assert [row["answer"] for row in rows] == [row["answer"] for row in written]
    assert rows[0]["prompt"] == written[0]["prompt"]
    assert [row["gold"] for row in rows] == [None, 0.5]
    assert files["tokenizer.json"] == (run / "final" / "tokenizer.json").read_bytes()
    assert "optimizer.bin" not in files and len(hub.commits) == 1


def test_nothing_local_and_no_token_is_published_or_printed(
    run: Path, hub: StandIn, rlhf_command: Callable[..., Any]
) -> None:
    done = rlhf_command("push", run, REPO, "--base", BASE)
    texts = {name: data.decode() for name, data in hub.repos[REPO].items() if name.endswith((".json", ".md"))}
    for name, text in texts.items():
        assert "/tmp/" not in text and str(run) not in text, name
    assert TOKEN not in done.output + "".join(texts.values())
    assert not {"config.yaml", "environment.json", ".lock"} & hub.repos[REPO].keys()


PRIVATE = ("10.1.2.3", "corp.internal", "/home/", "secret-project", "sk-live", "Falcon")


@pytest.mark.parametrize("whole", [False, True])
def test_rewards_are_published_without_addresses_folders_and_requests(
    run: Path, hub: StandIn, rlhf_command: Callable[..., Any], *, whole: bool
) -> None:
    criteria = ["It names our product Falcon."]
    judge = {"url": "http://10.1.2.3:8001", "model": "q/judge", "form": "rubric", "criteria": criteria}
    rewards = TypeAdapter(list[RewardSource]).validate_python(
        [
            {"adapter": "../secret-project/reward/final"},
            {"function": "/home/ann/private/rewards.py:brevity", "weight": 0.5},
            {"server": "http://reward.corp.internal:8800", "name": "tone"},
            {"judge": judge | {"extra_body": {"user": "sk-live-1234"}}},
            {"ensemble": {"adapters": ["/home/ann/a", "owner/b"]}},
        ]
    )
    final = run / "final"
    facts = {"base": LOCAL_BASE, "reward": [reward.model_dump(mode="json") for reward in rewards]}
    if whole:
        (final / "config.json").write_text(json.dumps({"model_type": "llama", TRAINED_WHOLE: facts}))
    else:
        (final / "policy.json").write_text(json.dumps(facts))
    card = final / "README.md"
    card.write_text(card.read_text() + "Reward: `" + " + ".join(r.words() for r in rewards) + "`\n")
    row = {"step": 1, "prompt": [], "answer": "x", "reward": None, "missing": "http://10.1.2.3:8001 is down"}
    (run / "samples.jsonl").write_text(json.dumps(row) + "\n")
    done = rlhf_command("push", run, REPO, "--base", BASE)
    assert done.exit_code == 0, done.output
    files = hub.repos[REPO]
    for name, data in files.items():
        assert not any(word.encode() in data for word in PRIVATE), name
    published = json.loads(files["config.json"])[TRAINED_WHOLE] if whole else json.loads(files["policy.json"])
    assert published["reward"] == [
        {"adapter": "final", "weight": 1.0},
        {"function": "rewards.py:brevity", "weight": 0.5},
        {"server": "a server", "weight": 1.0, "name": "tone"},
        {"judge": {"model": "q/judge"}, "weight": 1.0},
        {"ensemble": {"rule": "lower-bound", "adapters": ["a", "owner/b"]}, "weight": 1.0},
    ]
    assert "judge q/judge at a server" in files["README.md"].decode()
    assert pq.read_table(io.BytesIO(files["samples.parquet"])).column_names == [
        "step",
        "prompt",
        "answer",
        "reward",
    ]


def test_relative_paths_of_the_config_lose_their_folders(
    run: Path, hub: StandIn, rlhf_command: Callable[..., Any]
) -> None:
    paths = ["clients/acme/pairs.jsonl", "/home/ann/My Documents/acme/more.jsonl", "acme/*.jsonl"]
    config = {
        "start": "runs/acme-merger/dpo/final",
        "data": {"prompts": [{"path": path} for path in [*paths, "nvidia/HelpSteer2"]]},
        "reward": [{"function": "clients/acme/rewards.py:tone"}],
    }
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    final = run / "final"
    (final / "policy.json").write_text(json.dumps({"base": LOCAL_BASE, "start": config["start"]}))
    lines = [*paths, "nvidia/HelpSteer2", f"begun from {config['start']}", "clients/acme/rewards.py:tone"]
    card = final / "README.md"
    card.write_text(card.read_text() + "".join(f"- {line}\n" for line in lines))
    assert rlhf_command("push", run, REPO, "--base", BASE).exit_code == 0
    texts = {name: data.decode() for name, data in hub.repos[REPO].items() if name.endswith((".json", ".md"))}
    for name, text in texts.items():
        assert "acme" not in text and "My Documents" not in text, name
    for line in (
        "- pairs.jsonl",
        "- *.jsonl",
        "- nvidia/HelpSteer2",
        "begun from final",
        "- rewards.py:tone",
    ):
        assert line in texts["README.md"]


def test_the_card_of_the_embedded_base_names_it_on_the_hub(tmp_path: Path) -> None:
    model, staged = tmp_path / "final", tmp_path / "staged"
    for folder in (model, staged):
        folder.mkdir()
    (model / "policy.json").write_text(json.dumps({"base": "embedded"}))
    (model / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "embedded"}))
    card = render_card(
        base="embedded", task="text-generation", library="peft", title="t", summary="s",
        code=f"base = {base_literal('embedded')}", datasets=[], sections={},
    )  # fmt: skip
    (model / "README.md").write_text(card)
    stage(PushedModel(model, None), model, staged, repo=REPO, base=None, samples=False)
    assert f"base = {known_as('embedded')!r}\n" in (staged / "README.md").read_text()


@pytest.mark.parametrize("name", ["data/*.jsonl", "my data/x", "../x", "a/b/c", "x"])
def test_what_is_no_name_of_the_hub(name: str) -> None:
    assert not is_hub_name(name)
    assert is_hub_name("nvidia/HelpSteer2")


def test_a_card_that_the_hub_refuses_is_a_message(tmp_path: Path) -> None:
    class Refusing:
        endpoint = "hub"

        def repo_exists(self, repo: str) -> bool:
            return False

        def create_repo(self, repo: str, *, private: bool) -> None: ...

        def create_commit(self, *_: Any, **__: Any) -> None:
            raise ValueError('Invalid metadata in README.md.\n- "datasets[0]" is wrong')

    with pytest.raises(RunError, match="refuses the metadata of the model card") as caught:
        push(tmp_path, REPO, private=True, update=False, message="m", api=Refusing())  # type: ignore[arg-type]
    assert "--update" in caught.value.fix


def test_a_repository_that_exists_needs_update(
    run: Path, hub: StandIn, rlhf_command: Callable[..., Any]
) -> None:
    hub.repos[REPO], hub.private[REPO] = {"kept.txt": b"kept"}, False
    refused = rlhf_command("push", run, REPO, "--base", BASE)
    assert refused.exit_code == 2 and "--update" in refused.output
    assert hub.repos[REPO] == {"kept.txt": b"kept"}
    done = rlhf_command("push", run, REPO, "--base", BASE, "--update", "--no-samples")
    assert done.exit_code == 0, done.output
    assert {"kept.txt", "README.md"} < hub.repos[REPO].keys() and "samples.parquet" not in hub.repos[REPO]
    assert hub.private[REPO] is False


def test_dry_run_lists_files_with_sizes_and_contacts_nothing(
    run: Path, hub: StandIn, rlhf_command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    done = rlhf_command("push", run, REPO, "--base", BASE, "--dry-run")
    assert done.exit_code == 0, done.output
    size = (run / "final" / "adapter_model.safetensors").stat().st_size
    assert any(
        line.split() == ["adapter_model.safetensors", f"{size:,}", "bytes"]
        for line in done.output.splitlines()
    )
    assert hub.tokens == set() and hub.repos == {}


@pytest.mark.usefixtures("merged")
def test_a_merged_model_needs_no_base(run: Path, hub: StandIn, rlhf_command: Callable[..., Any]) -> None:
    done = rlhf_command("push", run, REPO, "--merged", "--dtype", "float32", "--public")
    assert done.exit_code == 0, done.output
    assert hub.repos[REPO]["model.safetensors"] == WEIGHTS["model.safetensors"]
    assert "adapter_config.json" not in hub.repos[REPO]
    assert hub.private[REPO] is False
    card = ModelCard(hub.repos[REPO]["README.md"].decode())
    assert card.data.library_name == "transformers" and f"{REPO!r}" in card.text
    assert "/tmp/" not in str(card)


@pytest.mark.usefixtures("merged", "hub")
def test_a_merged_model_may_have_the_reward_as_its_only_output(
    run: Path, rlhf_command: Callable[..., Any]
) -> None:
    done = rlhf_command("push", run, REPO, "--merged", "--reward-only", "--dry-run")
    assert done.exit_code == 0 and "merged in None, with one output" in done.output, (
        "the format of the training"
    )
    refused = rlhf_command("push", run, REPO, "--reward-only", "--dry-run")
    assert refused.exit_code == 2 and "add --merged" in refused.output


def test_an_adapter_on_a_local_base_is_refused(
    run: Path, hub: StandIn, rlhf_command: Callable[..., Any]
) -> None:
    refused = rlhf_command("push", run, REPO)
    assert refused.exit_code == 2 and "--base" in refused.output and "--merged" in refused.output
    assert hub.repos == {}


@pytest.mark.parametrize(
    ("repo", "token", "fail", "code", "says"),
    [
        (REPO, None, None, 2, "hf auth login"),
        (REPO, "hf_wrong_token_000", None, 2, "hf auth login"),
        ("others/policy", TOKEN, None, 2, "others/policy"),
        (REPO, TOKEN, (413, "storage limit reached"), 1, "storage limit reached"),
    ],
)
def test_each_refusal_of_the_hub_has_its_message(
    run: Path,
    hub: StandIn,
    rlhf_command: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    repo: str,
    token: str | None,
    fail: tuple[int, str] | None,
    code: int,
    says: str,
) -> None:
    monkeypatch.setattr("huggingface_hub.utils._auth._get_token_from_file", lambda: None)
    hub.fail = fail
    monkeypatch.delenv("HF_TOKEN")
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    done = rlhf_command("push", run, repo, "--base", BASE)
    assert done.exit_code == code, done.output
    assert says in done.output and "Traceback" not in done.output
    assert token is None or token not in done.output


def test_a_hub_that_cannot_be_reached(
    run: Path, rlhf_command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import HfApi

    monkeypatch.setattr("rlhf.publish.upload.HfApi", lambda: HfApi(endpoint="http://127.0.0.1:9"))
    done = rlhf_command("push", run, REPO, "--base", BASE)
    assert done.exit_code in (1, 2) and "Traceback" not in done.output
    assert "--dry-run" in done.output


@pytest.mark.parametrize("name", ["policy", "a/b/c", "me/po licy", "me/"])
def test_a_name_that_is_none(name: str) -> None:
    with pytest.raises(OutputError) as refused:
        check_name(name)
    assert "OWNER/NAME" in refused.value.allowed


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    with pytest.raises(OutputError) as refused:
        find_model(tmp_path)
    assert "--resume" in refused.value.fix
    with pytest.raises(OutputError):
        find_model(tmp_path / "missing")


def test_a_path_that_is_gone_is_not_published_either() -> None:
    card = {"rlhf_policy": {"base": "/home/someone/models/base"}, "template": "/no_think", "text": "a /b/c"}
    assert _without_paths(card) == card | {"rlhf_policy": {"base": "base"}}
