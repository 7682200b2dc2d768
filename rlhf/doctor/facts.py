"""Facts that the checks read: plain values, so that tests can describe any machine.

Sizes are in bytes. A `Trouble` in place of a fact says why it could not be collected.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from rlhf.config.policy import PolicyConfig
from rlhf.config.reward import RewardConfig

MIB, GIB = 2**20, 2**30
EMBEDDED = "embedded"
"""Name of the base that is installed as a wheel; see `rlhf.models.embedded`."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a fact could not be collected, and the fix."""

    found: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Packages:
    """Python, the installed packages, and the requirements of each (`name>=1,<2`)."""

    python: str
    versions: Mapping[str, str]
    requires: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as torch sees it."""

    name: str
    memory: int
    free: int
    bfloat16: bool


@dataclass(frozen=True, slots=True)
class Torch:
    """Versions and devices of torch.

    Attributes:
        peers: whether all GPUs have peer access to each other; None with fewer than two.
        slow_bfloat16: there is no GPU, and the processor is slower in bfloat16 than in float32.
    """

    cuda: str | None
    nccl: str | None
    gpus: tuple[Gpu, ...]
    peers: bool | None
    slow_bfloat16: bool = False
    cudnn: int | None = None


@dataclass(frozen=True, slots=True)
class Driver:
    """The NVIDIA driver: its version, the newest CUDA it supports, the names of the GPUs."""

    version: str
    cuda: str
    gpus: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Host:
    """The machine or container; `nvidia`: whether the driver's files list a GPU."""

    memory: int
    cores: int
    shared_memory: int
    open_files: int
    locked_memory: int
    infiniband: bool
    processes: int
    threads: int | None
    nvidia: bool = False
    sharded: bool = False
    """Whether the launcher shards the weights."""
    offloaded: bool = False
    """Whether it offloads the shards to host memory."""
    settings: Mapping[str, str] = field(default_factory=dict)
    driver: Driver | None = None


@dataclass(frozen=True, slots=True)
class Disk:
    """An output path, and the free bytes there; `write`: whether it is writable."""

    path: str
    free: int
    write: bool = True


@dataclass(frozen=True, slots=True)
class Shape:
    """Parameters of the base, of its linear layers, and trained ones; `notes`: what a run prints about the
    base.
    """

    parameters: int
    linear: int
    trained: int
    context: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Hub:
    """A base on the Hub: whether it is cached; if not, `answer` is its size or why it cannot be
    downloaded.
    """

    cached: bool
    offline: bool
    token: bool
    answer: int | Trouble | None = None


@dataclass(frozen=True, slots=True)
class Base:
    """The base without its weights; `stored` and `missing` are the weight files of a folder."""

    name: str
    shape: Shape | Trouble | None = None
    stored: int | None = None
    missing: tuple[str, ...] = ()
    hub: Hub | None = None


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokenizer and its template, from `rlhf.models.chat.Chat`."""

    notes: tuple[str, ...]
    pad: str
    pad_ends: bool
    stops: tuple[str, ...]
    dated: bool
    template_hash: str
    reasoning: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """A data source; `read` is (first rows read, usable ones), None where they were not read."""

    name: str
    read: tuple[int, int] | Trouble | None


TrainedKey = Literal["reward", "held_out_reward", "start"]


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained model in the config: its folder, and its card or what is wrong with it."""

    key: TrainedKey
    folder: str
    card: Mapping[str, str] | Trouble


@dataclass(frozen=True, slots=True)
class Served:
    """A rollout server in the config: its context, or why it cannot be used."""

    url: str
    length: int | Trouble


@dataclass(frozen=True, slots=True)
class PlannedPhase:
    """A phase of the plan on these GPUs, in bytes; `trouble` says why it cannot run, whatever the sum."""

    name: str
    total: int
    memory: int
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Run:
    """Facts of the run that a config describes."""

    config: RewardConfig | PolicyConfig
    output: Disk
    holds: Literal["nothing", "a run", "something else"]
    cache: Disk
    base: Base
    tokens: Tokens | Trouble | None = None
    sources: tuple[SourceFacts, ...] = ()
    trained: tuple[Trained, ...] = ()
    servers: tuple[Served, ...] = ()
    planned: tuple[PlannedPhase, ...] = ()
    """Phases of the plan; none without a GPU."""
    gpus: str = ""
    """Value of `rlhf plan --gpus` for this machine."""
    planned_host: int | None = None
    """Bytes of the machine's memory that this plan needs; None without one."""


@dataclass(frozen=True, slots=True)
class Facts:
    """All facts. `tried`: library to the message of its probe, or a trouble; without an entry it was not
    probed.
    """

    packages: Packages
    host: Host
    torch: Torch | Trouble | None = None
    tried: Mapping[str, str | Trouble] = field(default_factory=dict)
    run: Run | None = None
