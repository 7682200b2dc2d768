"""Facts of the run that a config describes: base, tokenizer, data, output. No weights are loaded."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from rlhf.config.policy import PolicyConfig
from rlhf.config.reward import RewardConfig
from rlhf.config.schema import DataSource
from rlhf.core.errors import RlhfError
from rlhf.core.places import missing_local
from rlhf.data.comparisons import load_comparisons
from rlhf.data.drops import DropReport
from rlhf.data.load import load_preferences, load_prompts, load_ratings
from rlhf.data.sources.rows import DEMO, looks_local
from rlhf.doctor.facts import (
    EMBEDDED,
    Base,
    Hub,
    PlannedPhase,
    Run,
    Shape,
    SourceFacts,
    Tokens,
    Torch,
    Trained,
    TrainedKey,
    Trouble,
)
from rlhf.doctor.machine_facts import disk
from rlhf.doctor.probes import try_out
from rlhf.doctor.server_facts import servers_of
from rlhf.models.weight_files import FILES_OR_INDICES, WEIGHT_FILES, weight_files

if TYPE_CHECKING:
    from rlhf.models.chat import Chat

FIRST_ROWS = 1000
"""Rows of each source that become records; a local file is read to its end, so that truncation is
detected."""

T = TypeVar("T")
Config = RewardConfig | PolicyConfig


def attempt(call: Callable[[], T]) -> T | Trouble:
    """The result of a call, or its RlhfError as a Trouble."""
    try:
        return call()
    except RlhfError as error:
        allowed = f" Allowed: {error.allowed}." if error.allowed else ""
        return Trouble(error.found + allowed, error.fix)


def quick_run(config: Config) -> Run:
    """Facts from files only; takes milliseconds and imports no torch."""
    from rlhf.models.embedded import NAME, cache_folder

    base = config.model.base
    embedded = base == EMBEDDED
    cache = cache_folder() if embedded else _hub_cache()
    files = _files(base, cache / NAME if embedded else Path(base))
    return Run(config, disk(config.output), holds(config.output), disk(cache), files)


def full_run(config: Config, say: Callable[[str], None], torch: Torch | Trouble | None = None) -> Run:
    """All facts that need no weights.

    Args:
        say: receives progress messages.
        torch: its GPUs are planned for.
    """
    quick = quick_run(config)
    say(f"Checking {config.model.base}")
    hub = _hub(config)
    absent = looks_local(config.model.base) and not Path(config.model.base).is_dir()
    shape: Shape | Trouble | None
    if absent:
        near = missing_local(config.model.base)
        shape = Trouble(f"there is no folder {config.model.base}: {near}", _path_fix(near))
    else:
        shape = attempt(lambda: _shape(config))
    here = not absent and (hub is None or hub.cached)
    chat = attempt(lambda: _chat(config)) if here else None
    base = Base(config.model.base, shape, quick.base.stored, quick.base.missing, hub)
    sources = []
    for name, source, load in _sources(config):
        say(f"Reading {name}")
        sources.append(SourceFacts(name, _read(source, load)))
    return Run(
        config,
        quick.output,
        quick.holds,
        quick.cache,
        base,
        _tokens(chat) if chat is not None and not isinstance(chat, Trouble) else chat,
        tuple(sources),
        tuple(_trained(config)),
        tuple(servers_of(config)),
        *_planned(config, torch, say),
    )


def _planned(
    config: Config, torch: Torch | Trouble | None, say: Callable[[str], None]
) -> tuple[tuple[PlannedPhase, ...], str, int | None]:
    """The plan's phases on this machine's GPUs, the value of `--gpus`, and the host memory that it needs.

    Empty without a GPU or a plan.
    """
    if not isinstance(torch, Torch) or not torch.gpus or config.adapter is None:
        return (), "", None
    from rlhf.plan.gpus import GIB, Cluster, Gpu
    from rlhf.plan.machine import plan_on

    smallest = min(torch.gpus, key=lambda gpu: gpu.memory)
    cluster = Cluster(Gpu(smallest.name, smallest.memory), len(torch.gpus))
    say(f"Planning for {cluster}")
    planned = attempt(lambda: plan_on(config, cluster))
    if isinstance(planned, Trouble):
        return (), "", None
    phases = tuple(
        PlannedPhase(phase.name, phase.total, phase.capacity, phase.trouble) for phase in planned[0]
    )
    return phases, f"{len(torch.gpus)}x{smallest.memory / GIB:.1f}GiB", planned[1].need


def holds(output: Path) -> Literal["nothing", "a run", "something else"]:
    """Content of the output folder."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return "nothing"
    return "a run" if (output / "config.yaml").exists() else "something else"


def _files(name: str, folder: Path) -> Base:
    """The weight files in a base's folder: their bytes, and the files that its index lists but are
    missing.
    """
    if not folder.is_dir():
        return Base(name)
    wanted = weight_files(folder) or {WEIGHT_FILES[0]}
    present = {file: (folder / file).stat().st_size for file in wanted if (folder / file).exists()}
    return Base(name, stored=sum(present.values()), missing=tuple(sorted(wanted - present.keys())))


def _hub_cache() -> Path:
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or home / "hub")


def _hub(config: Config) -> Hub | None:
    """The state of a base on the Hub: cached, or the Hub's answer; None for a folder."""
    name, revision = config.model.base, config.model.revision
    if name == EMBEDDED or looks_local(name):
        return None
    from huggingface_hub import get_token, try_to_load_from_cache
    from huggingface_hub.constants import HF_HUB_OFFLINE

    token = get_token() is not None
    cached = any(
        isinstance(try_to_load_from_cache(name, file, revision=revision), str) for file in FILES_OR_INDICES
    )
    if cached or HF_HUB_OFFLINE:
        return Hub(cached, HF_HUB_OFFLINE, token)
    return Hub(cached, HF_HUB_OFFLINE, token, hub_answer(try_out("hub", name, revision or "", seconds=30)))


def hub_answer(result: Any) -> int | Trouble:
    """The bytes of a base's weights, or why they cannot be downloaded, from the probe's result."""
    if isinstance(result, Trouble):
        return Trouble(
            f"the Hub did not answer: {result.found}", "check the network, or set HF_HUB_OFFLINE=1"
        )
    if "bytes" in result:
        return int(result["bytes"])
    if result["gated"]:
        fix = "request access on the model's page, then `hf auth login`"
        return Trouble("this model is gated, and access was not granted", fix)
    return Trouble(f"the Hub answers {result['error']}", HUB_FIXES.get(result["error"], "try again later"))


HUB_FIXES = {
    "RepositoryNotFoundError": "correct model.base; for a private model run `hf auth login` first",
    "RevisionNotFoundError": "correct model.revision, or leave it out",
    "HFValidationError": "model.base must be OWNER/NAME on the Hub, a folder, or `embedded`",
}
"""Error of the Hub: its fix."""


def _path_fix(near: str) -> str:
    """The fix for a path that does not exist: a similar path, if there is one."""
    hint = re.search(r"Did you mean (.*)\?$", near)
    return f"model.base={hint[1]}" if hint else "correct the path in model.base"


def _chat(config: Config) -> Chat:
    from rlhf.models.chat import Chat

    return Chat.of(config.model)


def _tokens(chat: Chat) -> Tokens:
    tokenizer = chat.tokenizer
    return Tokens(
        notes=tuple(chat.notes),
        pad=f"{tokenizer.convert_ids_to_tokens(chat.pad_id)} ({chat.pad_id})",
        pad_ends=chat.pad_id in chat.stop_ids,
        stops=tuple(f"{tokenizer.convert_ids_to_tokens(stop)} ({stop})" for stop in chat.stop_ids),
        dated=chat.writes_date(),
        reasoning=tuple(chat.reasoning_effects()),
        template_hash=chat.template_hash,
    )


def _shape(config: Config) -> Shape:
    """Parameter counts of the base, built on the meta device.

    Raises:
        ModelError: a run would refuse this base.
    """
    from rlhf.models import bases
    from rlhf.models.targets import adapter_targets, linear_layers
    from rlhf.plan.memory.shapes import load_shape

    base, revision = config.model.base, config.model.revision
    bases.refuse_adapter(base, revision)
    attributes = config.attributes if isinstance(config, RewardConfig) else None
    shape = load_shape(base, revision, classifier=attributes is not None)
    adapter = config.adapter
    notes = bases.examine(
        shape,
        base,
        revision=revision,
        quantization=config.model.quantization,
        adapter=None if adapter is None else adapter.model_dump(),
        attributes=attributes,
    )
    model = bases.skeleton(shape, base, classifier=False)
    weights = {place: layer.get_parameter("weight") for place, layer in linear_layers(model).items()}
    parameters = sum(parameter.numel() for parameter in model.parameters())
    trained = parameters
    if adapter is not None:
        targets = adapter_targets(model, adapter.targets)
        adapted = [
            weight
            for place, weight in weights.items()
            if targets == "all-linear" or place.rpartition(".")[2] in targets
        ]
        trained = adapter.rank * sum(sum(weight.shape) for weight in adapted)
    return Shape(
        parameters=parameters,
        linear=sum(weight.numel() for weight in weights.values()),
        trained=trained,
        context=shape.max_position_embeddings,
        notes=tuple(notes),
    )


def _sources(config: Config) -> list[tuple[str, DataSource, Callable[[DataSource], DropReport]]]:
    """Every source with its display name and the function that reads its rows."""
    seed = config.seed
    if isinstance(config, PolicyConfig):
        return [
            (f"data.prompts.{number}: {source.path}", source, lambda s: load_prompts([s])[1])
            for number, source in enumerate(config.data.prompts)
        ]
    spread = config.data.max_spread
    ratings = [
        (f"data.ratings.{number}: {source.path}", source, lambda s: load_ratings([s], seed=seed)[1])
        for number, source in enumerate(config.data.ratings)
    ]
    preferences = [
        (
            f"data.preferences.{number}: {source.path}",
            source,
            lambda s: load_preferences([s], seed=seed, max_spread=spread)[1],
        )
        for number, source in enumerate(config.data.preferences)
    ]
    if config.benchmark is None or config.benchmark == "rewardbench":
        return [*ratings, *preferences]
    benchmark = DataSource(path=config.benchmark)
    return [
        *ratings,
        *preferences,
        ("benchmark: " + benchmark.path, benchmark, lambda s: load_comparisons(s.path)[1]),
    ]


def _read(source: DataSource, load: Callable[[DataSource], DropReport]) -> tuple[int, int] | Trouble | None:
    """(rows read, usable rows) of the first; None for a data set on the Hub, which is not downloaded."""
    if source.path != DEMO and not looks_local(source.path):
        return None
    head = source.model_copy(update={"limit": min(source.limit or FIRST_ROWS, FIRST_ROWS)})
    drops = attempt(lambda: load(head))
    return drops if isinstance(drops, Trouble) else (drops.read, drops.kept)


def _trained(config: Config) -> Sequence[Trained]:
    """The reward models that a policy is trained with, or that a reward run starts from."""
    base = config.model.base
    if isinstance(config, PolicyConfig):
        return [_trained_in(key, folder, base) for key, folder in config.reward_folders]
    return () if config.start is None else (_trained_in("start", config.start, base),)


def _trained_in(key: TrainedKey, folder: str, base: str) -> Trained:
    """The model in a folder; a base that is the config's has the config's spelling."""
    from rlhf.adapters.storage import RewardAdapter
    from rlhf.models.embedded import absolute_base

    read = attempt(lambda: RewardAdapter.read(Path(folder)))
    if isinstance(read, Trouble):
        return Trained(key, folder, read)
    card = {name: str(value) for name, value in read.card.items()}
    if absolute_base(card["base"]) == absolute_base(base):
        card["base"] = base
    return Trained(key, folder, card)
