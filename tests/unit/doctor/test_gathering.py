"""Facts of the machine the tests run on, and of runs on a tiny base."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf.config.load import load_config
from rlhf.config.policy import PolicyConfig
from rlhf.config.reward import RewardConfig
from rlhf.core.errors import RunError
from rlhf.doctor import machine_facts as machine
from rlhf.doctor import probes
from rlhf.doctor.facts import Disk, Driver, Shape, Tokens, Trouble
from rlhf.doctor.preflight import preflight, require_fit
from rlhf.doctor.run_facts import full_run, holds, quick_run

NVIDIA_SMI = """
+-----------------------------------------------------------------------------------------+
| NVIDIA-SMI 570.86.10              Driver Version: 570.86.10      CUDA Version: 12.8     |
|-----------------------------------------+------------------------+----------------------+
"""
GPUS = """GPU 0: NVIDIA GeForce RTX 4090 (UUID: GPU-1b2c)
GPU 1: NVIDIA GeForce RTX 4090 (UUID: GPU-3d4e)
"""


def quiet(_: str) -> None:
    pass


@pytest.fixture
def config(reward_config: Path) -> Callable[..., RewardConfig]:
    return lambda *words: load_config(reward_config, RewardConfig, words)


def test_the_driver_out_of_what_it_prints() -> None:
    assert machine.read_driver(NVIDIA_SMI, GPUS) == Driver(
        "570.86.10", "12.8", ("NVIDIA GeForce RTX 4090",) * 2
    )
    assert (
        machine.read_driver("NVIDIA-SMI has failed because it couldn't communicate with the driver", "")
        is None
    )


def test_packages_are_read_without_an_import() -> None:
    result = machine.packages()
    assert result.versions["torch"].startswith("2.")
    assert any(line.startswith("torch") for line in result.requires["rlhf"])


def test_only_settings_of_the_cards_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_P2P_DISABLE", "1")
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    result = machine.host()
    assert result.settings["NCCL_P2P_DISABLE"] == "1"
    assert "secret" not in str(result)
    assert result.processes == 2
    assert result.memory > 2**30
    assert result.cores >= 1


def test_the_disk_of_a_folder_that_is_yet_to_come(tmp_path: Path) -> None:
    result = machine.disk(tmp_path / "a" / "b")
    assert result.free > 0
    assert result.write


def test_a_probe_and_its_errors() -> None:
    assert probes.try_out("import", "json") == "imports"
    missing = probes.try_out("import", "no_such_library")
    assert missing == Trouble("ModuleNotFoundError: No module named 'no_such_library'")
    assert probes.try_out("import", "json", seconds=0.001) == Trouble("no answer within 0 seconds")


def test_what_the_probes_of_torch_and_bitsandbytes_find() -> None:
    assert set(probes.torch()) == {"cuda", "nccl", "gpus", "peers", "cudnn", "slow_bfloat16"}
    assert "usual error" in probes.bitsandbytes()


def test_a_run_on_a_tiny_base(config: Callable[..., RewardConfig], tiny_base: Path, tmp_path: Path) -> None:
    from rlhf.models.loading import load_causal, lora_config, with_adapter

    loaded = config(f"output={tmp_path / 'run'}")
    run = full_run(loaded, quiet)
    base = load_causal(str(tiny_base), revision=None, dtype="float32", quantization="none")
    all_of_it = sum(parameter.numel() for parameter in base.parameters())
    adapted = with_adapter(base, lora_config(**loaded.adapter.model_dump()))
    trained = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    assert isinstance(run.base.shape, Shape)
    assert (run.base.shape.parameters, run.base.shape.trained) == (all_of_it, trained)
    assert run.base.shape.context == 512
    assert run.base.stored == (tiny_base / "model.safetensors").stat().st_size
    assert run.base.missing == ()
    assert isinstance(run.tokens, Tokens)
    assert run.tokens.stops == ("<|im_end|> (2)",)
    assert not run.tokens.dated
    ties = sum(
        json.loads(line)["preference_strength"] == 0
        for line in Path(loaded.data.preferences[0].path).read_text().splitlines()
    )
    assert 0 < ties < 40
    assert [source.read for source in run.sources] == [(80, 80), (40, 40 - ties)]
    assert run.holds == "nothing"


def test_adapters_of_some_layers_only(config: Callable[..., RewardConfig]) -> None:
    run = full_run(config("adapter.targets=[q_proj]", "adapter.rank=3"), quiet)
    assert isinstance(run.base.shape, Shape)
    assert run.base.shape.trained == 2 * 3 * (64 + 64)  # two layers, q_proj 64 -> 64


def test_a_base_that_does_not_exist(config: Callable[..., RewardConfig]) -> None:
    run = full_run(config("model.base=./nowhere"), quiet)
    assert isinstance(run.base.shape, Trouble)
    assert run.base.shape.found.startswith("there is no folder ./nowhere: ")
    assert run.tokens is None


def test_a_folder_without_a_model(config: Callable[..., RewardConfig], tmp_path: Path) -> None:
    run = full_run(config(f"model.base={tmp_path}"), quiet)
    assert isinstance(run.base.shape, Trouble)
    assert isinstance(run.tokens, Trouble)
    assert str(tmp_path) in run.tokens.found


def test_a_name_that_the_cache_does_not_have(config: Callable[..., RewardConfig]) -> None:
    run = full_run(config("model.base=someone/some-model"), quiet)  # the tests are offline
    assert run.base.hub is not None
    assert (run.base.hub.cached, run.base.hub.offline) == (False, True)
    assert run.tokens is None


def test_missing_weight_files(config: Callable[..., RewardConfig], tmp_path: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"12345")
    run = quick_run(config(f"model.base={tmp_path}"))
    assert (run.base.stored, run.base.missing) == (5, ("model-00002-of-00002.safetensors",))


def test_weights_in_torchs_format(config: Callable[..., RewardConfig], tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"12345")
    run = quick_run(config(f"model.base={tmp_path}"))
    assert (run.base.stored, run.base.missing) == (5, ())


def test_data_that_is_missing_or_torn(config: Callable[..., RewardConfig], tmp_path: Path) -> None:
    torn = tmp_path / "ratings.jsonl.gz"
    torn.write_bytes(gzip.compress(b'{"prompt": "a"}\n' * 1000)[:-20])
    run = full_run(config(f"data.ratings.0.path={torn}", "data.preferences.0.path=./gone.jsonl"), quiet)
    ratings, preferences = (source.read for source in run.sources)
    assert isinstance(ratings, Trouble)
    assert str(torn) in ratings.found
    assert isinstance(preferences, Trouble)
    assert "gone.jsonl" in preferences.found


def test_data_on_the_hub_is_not_downloaded(config: Callable[..., RewardConfig]) -> None:
    run = full_run(config("data.ratings.0.path=nvidia/HelpSteer2"), quiet)
    assert run.sources[0].read is None


def test_the_reward_model_of_a_policy(policy_config: Path, tiny_reward: Path) -> None:
    run = full_run(load_config(policy_config, PolicyConfig), quiet)
    (trained,) = run.trained
    assert isinstance(run.tokens, Tokens)
    assert not isinstance(trained.card, Trouble)
    assert trained.card["template_hash"] == run.tokens.template_hash
    run = full_run(load_config(policy_config, PolicyConfig, [f"reward={tiny_reward.parent}"]), quiet)
    assert isinstance(run.trained[0].card, Trouble)
    assert run.trained[0].card.fix == f"use {tiny_reward}"
    words = [f"reward=[{{function: gold}}, {tiny_reward}]", "held_out_reward=runs/none/final"]
    several = full_run(load_config(policy_config, PolicyConfig, words), quiet).trained
    assert [(item.key, item.folder) for item in several] == [
        ("reward", str(tiny_reward)),
        ("held_out_reward", "runs/none/final"),
    ]


def test_what_lies_in_the_output_folder(tmp_path: Path) -> None:
    assert holds(tmp_path / "new") == "nothing"
    assert holds(tmp_path) == "nothing"
    (tmp_path / "letters.txt").write_text("mine")
    assert holds(tmp_path) == "something else"
    (tmp_path / "config.yaml").write_text("")
    assert holds(tmp_path) == "a run"
    assert holds(tmp_path / "letters.txt") == "something else"


def test_the_quick_examine_is_quick(config: Callable[..., RewardConfig]) -> None:
    loaded = config()
    preflight(loaded)
    start = time.process_time()
    preflight(loaded)
    assert time.process_time() - start < 0.5


def test_a_full_disk_stops_a_run(
    config: Callable[..., RewardConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    require_fit(config())
    monkeypatch.setattr("rlhf.doctor.run_facts.disk", lambda path: Disk(str(path), 0))
    with pytest.raises(RunError) as caught:
        require_fit(config())
    assert all(part in caught.value.found for part in ("Disk: 0 MiB", "unused", "256 MiB"))
    assert caught.value.fix
    assert caught.value.exit_code == 1


def test_a_warning_is_printed_by_one_process_and_stops_nothing(
    config: Callable[..., RewardConfig], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    require_fit(config("threads=4096"))
    assert "Warning: Cores: " in capsys.readouterr().err
    monkeypatch.setenv("RANK", "1")
    require_fit(config("threads=4096"))
    assert capsys.readouterr().err == ""


def test_rollout_servers_are_asked_what_they_serve(policy_config: Path, fake_vllm: Any) -> None:
    base = load_config(policy_config, PolicyConfig).model.base
    right, other = fake_vllm.FakeVLLM(base, max_model_len=4096), fake_vllm.FakeVLLM("models/other")
    short, gone = fake_vllm.FakeVLLM(base, max_model_len=8), fake_vllm.FakeVLLM(base)
    gone.kill()
    addresses = ", ".join(server.url for server in (right, other, short, gone))
    words = ["rollouts.engine=servers", f"rollouts.servers=[{addresses}]"]
    served = full_run(load_config(policy_config, PolicyConfig, words), quiet).servers
    for server in (right, other, short):
        server.kill()
    lengths = [
        server.length.found if isinstance(server.length, Trouble) else server.length for server in served
    ]
    assert lengths[0] == 4096
    assert "serves models/other" in lengths[1] and "8 tokens" in lengths[2] and gone.url in lengths[3]
    assert all("--enable-lora" in server.length.fix for server in served[1:])
