"""Model cards: one template for reward models and policies, trained, extrapolated or merged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Literal

import yaml
from huggingface_hub import ModelCard, ModelCardData, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.repocard import metadata_load

from rlhf.models.embedded import embedded_model, known_as

CARD = "README.md"
TEMPLATE = "model_card.md.jinja"
LICENSES = {"embedded": "apache-2.0", "nvidia/HelpSteer2": "cc-by-4.0"}
"""Licenses, in the Hub's spelling, of known bases and data sets."""

Task = Literal["text-classification", "text-generation"]


def render_card(
    *,
    base: str,
    task: Task,
    library: Literal["peft", "transformers"],
    title: str,
    summary: str,
    code: str,
    sections: Mapping[str, str],
    datasets: Sequence[str] = (),
) -> str:
    """The model card in Markdown with the Hub's metadata.

    Args:
        base: as in a config; `embedded` is replaced by its name on the Hub.
        datasets: data sources; names of Hub data sets go into the metadata.
        sections: heading -> Markdown; empty ones are left out.
    """
    data = ModelCardData(
        base_model=known_as(base),
        datasets=sorted({name for name in datasets if is_hub_name(name)}) or None,
        library_name=library,
        license=license_of(base),
        pipeline_tag=task,
        tags=["rlhf", "reward-model" if task == "text-classification" else "aligned-policy"],
    )
    card = ModelCard.from_template(
        data,
        template_str=resources.files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8"),
        title=title,
        summary=summary.strip(),
        code=code,
        sections={heading: content for heading, content in sections.items() if content},
    )
    return f"{str(card).rstrip()}\n"


def license_of(base: str) -> str | None:
    """The license of a base, from its model card if that is on this machine; None if unknown."""
    if base in LICENSES:
        return LICENSES[base]
    try:
        file = Path(base) / CARD if Path(base).is_dir() else try_to_load_from_cache(base, CARD)
        metadata = metadata_load(file) if isinstance(file, str | Path) and Path(file).is_file() else None
    except (HFValidationError, yaml.YAMLError, ValueError):  # not a Hub name, or a card with invalid metadata
        return None
    value = (metadata or {}).get("license")
    return value if isinstance(value, str) else None


def license_line(base: str) -> str:
    """The line of a model card about the license."""
    name = license_of(base) or "not known"
    return f"License: {name}, from the base. The licenses of the base and of the data apply to this model."


def is_hub_name(name: str) -> bool:
    """Whether a data source has the form of a Hub data set: OWNER/NAME, and no such file here."""
    owner, _, rest = name.partition("/")
    return bool(owner.strip(".~")) and bool(rest) and "/" not in rest and not Path(name).exists()


def base_literal(base: str) -> str:
    """The base as a Python literal for code on a card; without access to the Hub."""
    if base == "embedded":
        return f"{str(embedded_model())!r}  # the folder that `rlhf embedded-model` prints"
    return repr(base)
