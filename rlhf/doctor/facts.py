"""What the doctor may know: plain values, so that a check can be tested with a machine that nobody has at hand.

Sizes are in bytes. A `Trouble` in the place of a fact says why it could not be had.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from rlhf.config.policy import PolicyConfig
from rlhf.config.reward import RewardConfig

MIB, GIB = 2**20, 2**30
EMBEDDED = "embedded"
"""The base that comes out of its wheel; see `rlhf.models.embedded`."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why something could not be found out, and what to do about it."""

    found: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Packages:
    """Python, the installed packages, and what each of them asks of the others (`name>=1,<2`)."""

    python: str
    versions: Mapping[str, str]
    requires: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Gpu:
    """One card as torch sees it."""

    name: str
    memory: int
    free: int
    bfloat16: bool


@dataclass(frozen=True, slots=True)
class Torch:
    """What torch says of itself; `peers`: whether all cards reach one another's memory, None with fewer than two; `emulates_bfloat16`: no card,
    and a processor that multiplies bfloat16 in software."""

    cuda: str | None
    nccl: str | None
    gpus: tuple[Gpu, ...]
    peers: bool | None
    emulates_bfloat16: bool = False
    cudnn: int | None = None


@dataclass(frozen=True, slots=True)
class Driver:
    """What the NVIDIA driver says: its version, the newest CUDA it takes, the cards' names."""

    version: str
    cuda: str
    cards: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Host:
    """The machine, or the container, around the cards; `nvidia`: whether a driver has any, by its files alone."""

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
    """Whether the launcher asks for sharded weights."""
    offloaded: bool = False
    """Whether it keeps the shards in the machine's memory."""
    settings: Mapping[str, str] = field(default_factory=dict)
    driver: Driver | None = None


@dataclass(frozen=True, slots=True)
class Disk:
    """A place that is written to, and the bytes free there; `write`: whether we may."""

    path: str
    free: int
    write: bool = True


@dataclass(frozen=True, slots=True)
class Shape:
    """Counts of parameters: the base's, those of it that 4 bits apply to, and those that are trained; `notes`: what a run would say of the base."""

    parameters: int
    linear: int
    trained: int
    context: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Hub:
    """A base by its Hugging Face name: in the cache or not; if not, what the Hub says (its size, or a trouble)."""

    cached: bool
    offline: bool
    token: bool
    answer: int | Trouble | None = None


@dataclass(frozen=True, slots=True)
class Base:
    """The base without its weights; `stored` and `missing` are a folder's weight files, `hub` a name's."""

    name: str
    shape: Shape | Trouble | None = None
    stored: int | None = None
    missing: tuple[str, ...] = ()
    hub: Hub | None = None


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokenizer and its template, as `rlhf.models.chat.Chat` has them."""

    notes: tuple[str, ...]
    pad: str
    pad_ends: bool
    stops: tuple[str, ...]
    dated: bool
    template_hash: str
    reasoning: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Source:
    """A data source and the count of its first rows that were read and were of use; None: not looked at."""

    name: str
    read: tuple[int, int] | Trouble | None


TrainedKey = Literal["reward", "held_out_reward", "start"]


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained model that the config names: its folder, and its card or what is wrong with it."""

    key: TrainedKey
    folder: str
    card: Mapping[str, str] | Trouble


@dataclass(frozen=True, slots=True)
class Served:
    """A rollout server that the config names, and the longest sequence it takes, or why it will not do."""

    url: str
    length: int | Trouble


@dataclass(frozen=True, slots=True)
class PlannedPhase:
    """A phase of the run as the plan has it on these GPUs, in bytes; `trouble` says why it cannot run whatever the sum."""

    name: str
    total: int
    memory: int
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Run:
    """What is known of the run that a config describes."""

    config: RewardConfig | PolicyConfig
    output: Disk
    holds: Literal["nothing", "a run", "something else"]
    cache: Disk
    base: Base
    tokens: Tokens | Trouble | None = None
    sources: tuple[Source, ...] = ()
    trained: tuple[Trained, ...] = ()
    servers: tuple[Served, ...] = ()
    planned: tuple[PlannedPhase, ...] = ()
    """By the plan; none without a GPU."""
    gpus: str = ""
    """As `rlhf plan --gpus` takes them."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything. `tried`: by name, what trying a library gave: what it said, or a trouble; not tried: absent."""

    packages: Packages
    host: Host
    torch: Torch | Trouble | None = None
    tried: Mapping[str, str | Trouble] = field(default_factory=dict)
    run: Run | None = None
