"""Each verdict on a run, from made-up facts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from rlhf.doctor import checks_memory as sizes
from rlhf.doctor import checks_run as checks
from rlhf.doctor.checks import CHECKS, examine, quick_examine
from rlhf.doctor.facts import (
    GIB,
    MIB,
    Disk,
    Facts,
    Gpu,
    Hub,
    PlannedPhase,
    Run,
    Served,
    Shape,
    SourceFacts,
    Tokens,
    Torch,
    Trouble,
)
from rlhf.doctor.results import Check, Finding, size

Only = Callable[[Check, Facts], Finding]
SHAPE = Shape(parameters=8_000_000_000, linear=7_000_000_000, trained=40_000_000, context=131_072)


def with_run(facts: Facts, **values: Any) -> Facts:
    assert facts.run is not None
    return replace(facts, run=replace(facts.run, **values))


def with_base(facts: Facts, **values: Any) -> Facts:
    assert facts.run is not None
    return with_run(facts, base=replace(facts.run.base, **values))


def with_gpu(facts: Facts, memory: int) -> Facts:
    return replace(facts, torch=Torch("13.0", None, (Gpu("gpu", memory, memory, bfloat16=True),), None))


def test_a_healthy_run_has_no_fault(healthy: Facts, several: Facts) -> None:
    for facts in (healthy, several):
        lines = [line for group in examine(facts).values() for line in group]
        assert {line.verdict for line in lines} == {"ok"}
        assert len(lines) >= 18
        assert quick_examine(facts) == []


def test_without_a_config_only_the_machine_is_judged(healthy: Facts) -> None:
    assert set(examine(replace(healthy, run=None))) == {"Packages", "Machine"}
    assert set(examine(healthy)) == set(CHECKS)


def test_every_fault_has_a_fix(healthy: Facts) -> None:
    full = with_run(healthy, output=Disk("runs", 0, write=False), holds="something else")
    broken = with_base(full, shape=Trouble("no such folder", "check the spelling"))
    faults = [line for lines in examine(broken).values() for line in lines if line.verdict == "problem"]
    assert {line.name for line in faults} >= {"Base", "Output", "Disk"}
    assert all(line.fix for line in faults)


def test_the_bytes_of_a_base() -> None:
    assert sizes.base_bytes(SHAPE, "bfloat16", "none") == 16_000_000_000
    assert sizes.base_bytes(SHAPE, "float32", "none") == 32_000_000_000
    # 7e9 weights of half a byte, a byte for each 64 and four for each 64 x 256; the other 1e9 in bfloat16
    expected = 7e9 / 2 + 7e9 / 64 + 7e9 / 64 / 256 * 4 + 2e9
    assert sizes.base_bytes(SHAPE, "bfloat16", "nf4") == pytest.approx(expected)


def test_the_checkpoints_counted_are_those_kept() -> None:
    from rlhf.runs.checkpoints import KEEP

    assert checks.CHECKPOINTS == KEEP + 1
    # three checkpoints of the adapter with two moments, the best and the final adapter, in four bytes
    assert checks.output_bytes(SHAPE) == 40_000_000 * 4 * (3 * 3 + 2)


def test_a_base_that_does_not_exist(healthy: Facts, only: Only) -> None:
    line = only(checks.base, with_base(healthy, shape=Trouble("no model at ./nowhere", "check the spelling")))
    assert (line.verdict, line.found, line.fix) == ("problem", "no model at ./nowhere", "check the spelling")


def test_a_base_that_the_hub_has_is_not_a_problem(healthy: Facts, only: Only) -> None:
    unknown = with_base(healthy, shape=Trouble("no config.json here"), hub=Hub(False, False, True, 16 * GIB))
    assert only(checks.base, unknown).verdict == "not checked"
    assert only(checks.hub, unknown).verdict == "ok"


def test_missing_weight_files(healthy: Facts, only: Only) -> None:
    line = only(checks.base, with_base(healthy, missing=("model-00002-of-00004.safetensors",)))
    assert line.verdict == "problem"
    assert "model-00002-of-00004.safetensors" in line.found


@pytest.mark.parametrize(
    ("hub", "verdict", "words"),
    [
        (Hub(True, True, False), "ok", "in the cache"),
        (Hub(False, True, True), "problem", "HF_HUB_OFFLINE is set"),
        (Hub(False, False, True, 16 * GIB), "ok", "16.0 GiB of weights (with a token)"),
        (Hub(False, False, False, Trouble("gated", "hf auth login")), "problem", "gated (no token)"),
    ],
)
def test_a_base_on_the_hub(hub: Hub, verdict: str, words: str, healthy: Facts, only: Only) -> None:
    assert list(checks.hub(healthy)) == []
    line = only(checks.hub, with_base(healthy, hub=hub))
    assert line.verdict == verdict
    assert words in line.found


def test_a_length_beyond_the_context(healthy: Facts, run_with: Callable[..., Run], only: Only) -> None:
    assert only(checks.length, replace(healthy, run=run_with(model={"max_length": 131_072}))).verdict == "ok"
    line = only(checks.length, replace(healthy, run=run_with(model={"max_length": 131_073})))
    assert (line.verdict, line.fix) == ("problem", "model.max_length=131072")


def test_the_tokenizer(healthy: Facts, only: Only) -> None:
    lines = {line.name: line for line in checks.tokenizer(healthy)}
    assert lines["Padding"].found == "<pad> (4), which is no stop id"
    assert lines["Stop ids"].found == "<eos> (1), <eot> (9)"
    assert lines["Template"].found == "writes a date, pinned to 26 Jul 2024; hash aaaaaaaaaaaa…"
    trouble = with_run(healthy, tokens=Trouble("no chat template", "use the -Instruct version"))
    assert only(checks.tokenizer, trouble).verdict == "problem"
    assert only(checks.tokenizer, with_run(healthy, tokens=None)).verdict == "not checked"


def test_weights_on_a_gpu(healthy: Facts, run_with: Callable[..., Run], reward_run: Run, only: Only) -> None:
    # 16 GB of weights: vLLM has 0.35 of the GPU, the trainer the rest.
    assert only(sizes.memory, healthy).verdict == "ok"  # 80 GiB: 28 for vLLM
    small = with_gpu(healthy, 40 * GIB)  # 14 GiB for vLLM, and 14.9 are needed
    line = only(sizes.memory, small)
    assert line.verdict == "problem"
    assert "35% is vLLM's" in line.found
    assert only(sizes.memory, replace(small, run=reward_run)).verdict == "ok"
    assert only(sizes.memory, replace(with_gpu(healthy, 16 * GIB), run=reward_run)).verdict == "warning"
    assert only(sizes.memory, replace(with_gpu(healthy, 14 * GIB), run=reward_run)).verdict == "problem"
    in_4_bits = run_with(model={"quantization": "nf4"})  # 5.2 GiB
    assert only(sizes.memory, replace(with_gpu(healthy, 24 * GIB), run=in_4_bits)).verdict == "ok"


def test_weights_that_several_cards_may_share(several: Facts, only: Only) -> None:
    assert isinstance(several.torch, Torch)
    small = tuple(replace(gpu, memory=24 * GIB) for gpu in several.torch.gpus)
    assert only(sizes.memory, replace(several, torch=replace(several.torch, gpus=small))).verdict == "warning"


@pytest.mark.parametrize(
    ("memory", "engine", "verdict"),
    # 14.9 GiB of weights, in two copies where vLLM samples
    [(29, "vllm", "problem"), (31, "vllm", "warning"), (64, "vllm", "ok"), (29, "transformers", "ok")],
)
def test_weights_without_a_card(
    memory: int, engine: str, verdict: str, healthy: Facts, run_with: Callable[..., Run], only: Only
) -> None:
    host = replace(healthy.host, memory=memory * GIB)
    run = run_with(rollouts={"engine": engine})
    facts = replace(healthy, torch=Torch(None, None, (), None), host=host, run=run)
    assert only(sizes.memory, facts).verdict == verdict


@pytest.mark.parametrize(
    ("memory", "engine", "verdict"),
    # 8e9 parameters: weights twice, gradients and two moments in float32 are 149 GiB; vLLM has 14.9 GiB.
    [
        (148, "transformers", "problem"),
        (151, "transformers", "warning"),
        (163, "vllm", "problem"),
        (165, "vllm", "warning"),
        (256, "vllm", "ok"),
    ],
)
def test_memory_where_all_weights_are_trained(
    memory: int, engine: str, verdict: str, healthy: Facts, run_with: Callable[..., Run], only: Only
) -> None:
    host = replace(healthy.host, memory=memory * GIB)
    run = run_with(rollouts={"engine": engine}, adapter=None)
    line = only(sizes.memory, replace(healthy, torch=Torch(None, None, (), None), host=host, run=run))
    assert line.verdict == verdict
    assert "trained, frozen, gradients and AdamW's two moments" in line.found


def test_a_gpu_where_all_weights_are_trained(
    healthy: Facts, run_with: Callable[..., Run], only: Only
) -> None:
    assert isinstance(healthy.torch, Torch)
    gpu = replace(healthy.torch.gpus[0], memory=160 * GIB)
    facts = replace(healthy, torch=replace(healthy.torch, gpus=(gpu,)))
    for engine, verdict in (("transformers", "warning"), ("vllm", "problem")):  # vLLM takes its share
        run = run_with(rollouts={"engine": engine}, adapter=None)
        assert only(sizes.memory, replace(facts, run=run)).verdict == verdict


def test_before_torch_is_asked_memory_is_judged_by_files(healthy: Facts, only: Only) -> None:
    unknown = replace(with_base(healthy, shape=None), torch=None)
    assert list(sizes.memory(unknown)) == []  # there is a GPU, of unknown size
    no_gpu = replace(unknown, host=replace(unknown.host, nvidia=False, memory=29 * GIB))
    assert only(sizes.memory, no_gpu).verdict == "problem"  # 16 GB twice
    assert list(sizes.memory(with_base(no_gpu, stored=None))) == []


@pytest.mark.parametrize(
    ("read", "verdict"),
    [
        ((600, 600), "ok"),
        ((600, 299), "warning"),
        (Trouble("no such file", "fix"), "problem"),
        (None, "not checked"),
    ],
)
def test_data(read: Any, verdict: str, healthy: Facts, only: Only) -> None:
    facts = with_run(healthy, sources=(SourceFacts("data.prompts.0: x.jsonl", read),))
    line = only(checks.sources, facts)
    assert line.verdict == verdict
    assert line.found.startswith("data.prompts.0: x.jsonl: ")


@pytest.mark.parametrize(
    ("write", "holds", "verdict"),
    [
        (True, "nothing", "ok"),
        (True, "a run", "warning"),
        (True, "something else", "problem"),
        (False, "nothing", "problem"),
    ],
)
def test_the_output_folder(write: bool, holds: str, verdict: str, healthy: Facts, only: Only) -> None:
    facts = with_run(healthy, output=Disk("runs/mine", 500 * GIB, write=write), holds=holds)
    assert only(checks.output, facts).verdict == verdict


@pytest.mark.parametrize(
    ("free", "verdict"), [(0, "problem"), (GIB, "problem"), (3 * GIB, "warning"), (4 * GIB, "ok")]
)
def test_room_for_checkpoints(free: int, verdict: str, healthy: Facts, only: Only) -> None:
    # 40 million numbers of four bytes, eleven times: 1.64 GiB
    line = only(checks.output_disk, with_run(healthy, output=Disk("runs/mine", free)))
    assert line.verdict == verdict
    assert f"{size(free)} free at runs/mine, 1.6 GiB needed" in line.found


def test_room_for_a_download(healthy: Facts, only: Only) -> None:
    assert list(checks.cache_disk(healthy)) == []  # all is there
    to_come = with_base(healthy, name="some/model", stored=None, hub=Hub(False, False, True, 16 * GIB))
    assert only(checks.cache_disk, to_come).verdict == "ok"
    line = only(checks.cache_disk, with_run(to_come, cache=Disk("/cache", 15 * GIB)))
    assert line.verdict == "problem"
    assert "HF_HOME" in line.fix
    embedded = with_run(with_base(healthy, stored=None), cache=Disk("/cache", 100 * MIB))
    assert "RLHF_CACHE" in only(checks.cache_disk, embedded).fix


@pytest.mark.parametrize(
    ("change", "verdict", "fix"),
    [
        ({}, "ok", ""),
        (
            {"template_hash": "b" * 64, "template_date": "27 Jul 2024"},
            "problem",
            "model.template_date='27 Jul 2024'",
        ),
        ({"base": "another"}, "warning", "model.base=another"),
    ],
)
def test_the_reward_model(change: dict[str, str], verdict: str, fix: str, healthy: Facts, only: Only) -> None:
    assert healthy.run is not None
    (trained,) = healthy.run.trained
    assert not isinstance(trained.card, Trouble)
    line = only(
        checks.trained, with_run(healthy, trained=(replace(trained, card={**trained.card, **change}),))
    )
    assert line.verdict == verdict
    assert line.fix.startswith(fix)


def test_a_reward_model_that_is_not_there(healthy: Facts, only: Only) -> None:
    assert healthy.run is not None
    (trained,) = healthy.run.trained
    missing = replace(trained, card=Trouble("there is no such folder", "rlhf train-reward CONFIG.yaml"))
    line = only(checks.trained, with_run(healthy, trained=(missing,)))
    assert (line.verdict, line.fix) == ("problem", "rlhf train-reward CONFIG.yaml")


def test_tokens_are_what_they_say(healthy: Facts) -> None:
    assert healthy.run is not None
    assert isinstance(healthy.run.tokens, Tokens)
    noted = with_run(
        healthy, tokens=replace(healthy.run.tokens, notes=("One of two.",), pad_ends=True, dated=False)
    )
    lines = {line.name: line.found for line in checks.tokenizer(noted)}
    assert "mask" in lines["Padding"]
    assert lines["Template"].startswith("writes no date")
    assert lines["Template"].endswith("One of two.")


def test_rollout_servers(healthy: Facts, only: Only) -> None:
    fine, lost = (
        Served("http://a:8000", 4096),
        Served("http://b:8000", Trouble("http://b:8000: no answer", "start it")),
    )
    facts = with_run(healthy, servers=(fine,))
    assert only(checks.servers, facts).verdict == "ok"
    assert "4,096 tokens" in only(checks.servers, facts).found
    facts = with_run(healthy, servers=(lost,))
    assert only(checks.servers, facts) == Finding(
        "Rollouts", "problem", "http://b:8000: no answer", "start it"
    )


def test_loading_is_held_against_the_machines_memory(
    healthy: Facts, run_with: Callable[..., Run], only: Only
) -> None:
    """8 billion parameters are 16 GB in bfloat16; each process without sharding reads its own."""
    eight = replace(healthy.host, processes=8)
    line = only(sizes.loading, replace(healthy, host=eight))
    assert (line.verdict, line.fix.split()[0]) == ("problem", "accelerate")  # 128 GB of 64 GiB
    sharded = replace(eight, sharded=True)
    assert only(sizes.loading, replace(healthy, host=sharded)).verdict == "ok"  # one reads
    four_bits = run_with(model={"quantization": "nf4"})
    assert list(sizes.loading(replace(healthy, run=four_bits, host=eight))) == []  # straight to the GPU
    assert only(sizes.loading, replace(healthy, run=four_bits, host=sharded)).verdict == "ok"


def test_with_a_plan_the_doctor_says_what_the_plan_says(healthy: Facts, policy_run: Run, only: Only) -> None:
    phases = (PlannedPhase("rollouts", 70 * GIB, 80 * GIB), PlannedPhase("update", 75 * GIB, 80 * GIB))
    line = only(sizes.memory, replace(healthy, run=replace(policy_run, planned=phases, gpus="1x80GiB")))
    assert line.verdict == "ok" and line.found.startswith("update needs 75.0 GiB of 80.0 GiB")
    phases = (*phases, PlannedPhase("critic", 90 * GIB, 80 * GIB))
    line = only(sizes.memory, replace(healthy, run=replace(policy_run, planned=phases, gpus="1x80GiB")))
    assert (line.verdict, line.fix) == ("problem", "rlhf plan CONFIG --gpus 1x80GiB")


def test_with_a_plan_its_host_memory_counts(healthy: Facts, policy_run: Run, only: Only) -> None:
    """Whatever this process's launcher says: a run is not started by the doctor."""
    eight = replace(healthy, host=replace(healthy.host, processes=8))
    planned = replace(policy_run, planned_host=healthy.host.memory, gpus="8x80GiB")
    assert only(sizes.loading, replace(eight, run=planned)).verdict == "ok"
    more = replace(planned, planned_host=healthy.host.memory + 1)
    line = only(sizes.loading, replace(healthy, run=more))
    assert line.verdict == "problem"
    assert line.fix == "rlhf plan CONFIG --gpus 8x80GiB --host-memory 64"
