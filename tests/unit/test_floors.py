"""Who may import whom: the floors of the house, the doors to the vendors' libraries, and what loads without
torch.

    core <- config, distributed <- runs <- kernels, data, report <- models <- adapters <- reward <- policy <-
    the roof (rlhf.commands, rlhf.cli, ...)

Imports are read from the source, those inside functions and under TYPE_CHECKING included: an arrow is an
arrow.
"""

from __future__ import annotations

import ast
import fnmatch
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
OURS = ("rlhf", "reward", "policy")

FLOORS = {
    "rlhf.core": 0,
    "rlhf.config": 1,
    "rlhf.distributed": 1,
    "rlhf.runs": 2,
    "rlhf.kernels": 3,
    "rlhf.tracking": 3,
    "rlhf.models": 4,
    "rlhf.adapters": 5,
    "rlhf.training": 5,
    "rlhf.data": 3,
    "rlhf.report": 3,
    "rlhf.publish": 5,
    "rlhf.search": 4,
    "rlhf.web": 4,
    "rlhf.annotate": 5,
    "reward": 6,
    "policy": 7,
    "rlhf.plan": 8,
    "rlhf.doctor": 9,
    "rlhf": 10,
}
"""Height of each room; a module imports its own room and lower floors. What else lies in `rlhf` is the
roof."""

ENTRANCES = {
    ("policy", "reward"): (
        "reward.scorer",
        "reward.form",
        "reward.load_scorer",
        "reward.judge",
        "reward.principle",
        "reward.losses",
        "reward.evaluation.winrate",
        "reward.evaluation.best_of_n",
        "reward.evaluation.benchmarks.breakdown",
    )
}  # a policy may follow anybody's reward model; DPO is Bradley-Terry on implicit rewards
"""(room, other room): the modules by which it may be entered."""

DOORS = {
    # The last keeps PEFT's layers from casting what autocast casts back.
    "peft": (
        "rlhf.models.loading",
        "rlhf.models.roles",
        "rlhf.adapters.storage",
        "rlhf.adapters.attached",
        "rlhf.kernels.adapter_layers",
    ),
    # The doctor tries both, each in a process of its own; the plan packs 4-bit layers that have no data.
    "bitsandbytes": ("rlhf.models.loading", "rlhf.doctor.probes", "rlhf.plan.memory.empty"),
    # The third hands weights to vLLM as TRL does.
    "trl": (
        "reward.training.trainer",
        "reward.justifier.trainer",
        "policy.training.trainer",
        "policy.dpo.trainer",
        "policy.rollouts.vllm.weights",
    ),
    "vllm": ("policy.rollouts.vllm.*", "rlhf.doctor.probes"),
    "deepspeed": ("rlhf.distributed.zero",),
    "optuna": ("rlhf.search.*",),
    "sqlalchemy": ("rlhf.search.storage", "rlhf.annotate.store", "rlhf.annotate.database"),
}
"""Vendor's library: the modules that may import it."""

HEAVY = ("torch", "transformers")
LIGHT = (
    "rlhf",
    "rlhf.config*",
    "rlhf.data*",
    "rlhf.report*",
    "rlhf.search*",
    "rlhf.core.errors",
    "rlhf.core.records",
    "rlhf.doctor.checks*",
    "rlhf.doctor.facts",
    "rlhf.doctor.machine_facts",
    "rlhf.doctor.preflight",
)
"""These import nothing HEAVY, and neither does what they import; nor does `rlhf.cli`, until a command
runs."""

PART_OF = {
    "annotated_types": "pydantic",
    "huggingface_hub": "transformers",
    "markupsafe": "jinja2",
    "packaging": "transformers",
    "pydantic_core": "pydantic",
}
"""Packages that come with a declared one and are made to be imported beside it."""


class Import(NamedTuple):
    """One import: `module` (ours) imports `name`, which stands at `place`."""

    module: str
    name: str
    place: str


def imports_of(source: str, module: str, file: str = "") -> Iterator[Import]:
    """Every import in a source text; `from a import b` counts as `a.b`."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        match node:
            case ast.Import():
                names = [alias.name for alias in node.names]
            case ast.ImportFrom(module=str(origin), level=0):
                names = [f"{origin}.{alias.name}" for alias in node.names]
            case ast.ImportFrom(level=level) if level:
                names = [f"{OURS[0]}.?"]  # relative: the linter refuses it; here it must not slip through
            case ast.Call(
                func=ast.Attribute(attr="import_module") | ast.Name(id="import_module" | "__import__"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                names = [name]
        for name in names:
            yield Import(module, name, f"{file}:{getattr(node, 'lineno', 0)}")


def within(name: str, room: str) -> bool:
    """Whether a dotted name is the room or lies in it."""
    return name == room or name.startswith(f"{room}.")


def room_of(name: str) -> str:
    """The room a dotted name of ours lies in: the longest that fits."""
    return max((room for room in FLOORS if within(name, room)), key=len)


def matches(module: str, patterns: Iterable[str]) -> bool:
    """Whether a module's dotted name fits one of the patterns."""
    return any(fnmatch.fnmatchcase(module, pattern) for pattern in patterns)


def fault(imported: Import) -> str | None:
    """What is wrong with an import, or None."""
    module, name, _ = imported
    vendor = name.partition(".")[0]
    if vendor in DOORS and not matches(module, DOORS[vendor]):
        return f"{vendor} is imported only by {', '.join(DOORS[vendor])}"
    if vendor in HEAVY and matches(module, LIGHT):
        return f"{module} must load without {vendor}"
    # rlhf/__init__.py is the public door: it points up, but lazily, which the test of light modules holds.
    if vendor not in OURS or module == "rlhf" or name == "rlhf.__version__":
        return None
    here, there = room_of(module), room_of(name)
    if here == there:
        return None
    if there == "rlhf":
        return f"the roof lies above {here}"
    if FLOORS[there] >= FLOORS[here]:
        return f"{there} lies above {here}, or beside it"
    entrances = ENTRANCES.get((here, there), ())
    if not entrances or any(within(name, entrance) for entrance in entrances):
        return None
    return f"{here} enters {there} by {' and '.join(entrances)} alone"


def our_modules() -> dict[str, Path]:
    """Every module of the packages, by dotted name."""
    files = (file for package in OURS for file in sorted((ROOT / package).rglob("*.py")))
    parts = {file: file.relative_to(ROOT).with_suffix("").parts for file in files}
    return {".".join(p[:-1] if p[-1] == "__init__" else p): file for file, p in parts.items()}


def our_imports() -> list[Import]:
    """Every import in the packages."""
    return [
        result
        for module, file in our_modules().items()
        for result in imports_of(file.read_text(encoding="utf-8"), module, str(file.relative_to(ROOT)))
    ]


def report(imports: Iterable[Import]) -> str:
    """One line a violation: place, what is imported, what is wrong with it."""
    return "\n".join(f"{i.place}: {i.name}: {why}" for i in imports if (why := fault(i)))


def test_imports_keep_to_the_floors_and_doors() -> None:
    imports = our_imports()
    assert len(imports) > 100, "the packages were not found"
    violations = report(imports)
    assert not violations, f"\n{violations}"


@pytest.mark.parametrize(
    ("module", "source", "reason"),
    [
        ("rlhf.core.records", "import rlhf.config.load", "rlhf.config lies above rlhf.core"),
        ("rlhf.config.load", "from rlhf.data import demo", "rlhf.data lies above rlhf.config"),
        ("rlhf.report.page", "from rlhf.data.load import load_prompts", "or beside it"),
        ("reward.scorer", "def f():\n    from policy.update.losses import k1", "policy lies above reward"),
        ("policy.recipe", "from rlhf.commands import score", "the roof lies above policy"),
        ("policy.recipe", "from rlhf import cli", "the roof lies above policy"),
        (
            "policy.recipe",
            "from reward import trainer",
            "policy enters reward by reward.scorer and reward.form and reward.load_scorer and "
            "reward.judge and reward.principle and reward.losses",
        ),
        (
            "policy.recipe",
            "import reward.training.batches",
            "policy enters reward by reward.scorer and reward.form and reward.load_scorer and "
            "reward.judge and reward.principle and reward.losses",
        ),
        (
            "reward.training.trainer",
            "from peft import PeftModel",
            "peft is imported only by rlhf.models.loading",
        ),
        ("rlhf.models.chat", "import bitsandbytes as bnb", "bitsandbytes is imported only by"),
        ("reward.training.recipe", "from trl.trainer import RewardTrainer", "trl is imported only by"),
        ("policy.rollouts.protocol", "import vllm", "vllm is imported only by"),
        (
            "policy.update.losses",
            "import importlib\nimportlib.import_module('vllm.lora')",
            "vllm is imported only by",
        ),
        ("rlhf.config.load", "import torch.nn", "rlhf.config.load must load without torch"),
        ("rlhf.core.records", "from torch import Tensor", "rlhf.core.records must load without torch"),
        ("reward.losses", "from .trainer import x", "the roof lies above reward"),
    ],
)
def test_a_violation_is_caught(module: str, source: str, reason: str) -> None:
    assert reason in report(imports_of(source, module, "made_up.py"))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("policy.recipe", "from reward.scorer import Scorer\nfrom reward import scorer"),
        ("policy.rollouts.vllm.engine", "import vllm\nfrom policy.update.losses import k1"),
        ("rlhf.commands.score", "from reward.training.trainer import x\nfrom rlhf.cli import y"),
        ("rlhf.data.load", "from rlhf.config.schema import DataSource\nfrom rlhf.core import errors"),
        ("rlhf.models.loading", "import torch, peft, rewarding, rlhf.models.chat"),
    ],
)
def test_an_allowed_import_is_let_through(module: str, source: str) -> None:
    assert report(imports_of(source, module)) == ""


LOAD_AND_LOOK = """
import importlib, sys
heavy, *modules = sys.argv[1:]
for module in modules:
    importlib.import_module(module)
    if loaded := set(heavy.split()) & set(sys.modules):
        sys.exit(f"{module} loads {', '.join(loaded)}")
"""


def test_light_modules_load_without_torch() -> None:
    light = [module for module in our_modules() if matches(module, (*LIGHT, "rlhf.cli"))]
    command = [sys.executable, "-c", LOAD_AND_LOOK, " ".join(HEAVY), *light]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def attributes_set_on(source: str, pattern: str) -> list[int]:
    """Lines that set an attribute of a name that matches."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and re.search(pattern, node.value.id)
    ]


def test_trainers_are_built_complete() -> None:
    assert attributes_set_on("trainer.rewards = x\nself.rewards = x\na, the_trainer.b = y", "trainer$") == [
        1,
        3,
    ]
    places = {
        module: attributes_set_on(file.read_text(encoding="utf-8"), "trainer$")
        for module, file in our_modules().items()
    }
    assert {module: lines for module, lines in places.items() if lines} == {}, "pass it to the constructor"


def test_every_library_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *extras["cpu"], *extras["gpu"], *extras["zero3"]]
    declared = {normal(re.split(r"[^\w.-]", line, maxsplit=1)[0]) for line in lines}
    owners = importlib.metadata.packages_distributions()
    missing = []
    for result in our_imports():
        top = result.name.partition(".")[0]
        package = PART_OF.get(top, top)
        distributions = {normal(owner) for owner in owners.get(package, [package])}
        if package not in (*OURS, *sys.stdlib_module_names) and not distributions & declared:
            missing.append(f"{result.place}: {package} is not among pyproject.toml's dependencies")
    assert not missing, "\n" + "\n".join(missing)


def normal(distribution: str) -> str:
    """A distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", distribution).lower()
