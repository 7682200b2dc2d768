"""The files of a Hub repository, prepared in a folder: weights, a card that loads them from the Hub, and
samples.

Nothing local is published: paths in the card and in JSON files lose their folders, addresses of servers and
the settings of requests to them are left out, and the base gets its name on the Hub.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from huggingface_hub import ModelCard

from rlhf.config.rewards import KINDS
from rlhf.core.errors import DataError, ModelError, OutputError
from rlhf.core.hub import ADAPTER_CONFIG, CARDS
from rlhf.models.card import CARD, base_literal, is_hub_name
from rlhf.models.embedded import known_as
from rlhf.models.names import TRAINED_WHOLE
from rlhf.runs.folder import SAMPLES

PUBLISHED = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.txt", "*.model", CARD)
"""Names of files of a model folder that are uploaded; any other stays."""
BASE_KEYS = {
    **dict.fromkeys(CARDS, "base"),
    ADAPTER_CONFIG: "base_model_name_or_path",
}
"""JSON files that name the base, and the key; the first that exists counts."""
VOCABULARIES = ("tokenizer.json", "vocab.json", "added_tokens.json", "special_tokens_map.json")
"""JSON files whose text is tokens, never paths: they are copied byte for byte."""
SAMPLES_FILE = "samples.parquet"
PRIVATE_COLUMNS = frozenset({"missing"})
"""Columns of samples.jsonl that stay: why a reward is missing, in words that name servers and files."""
PLACES = frozenset(
    [
        "path",
        "start",
        "output",
        "reward",
        "held_out_reward",
        "adapter",
        "adapters",
        "classifier",
        "function",
        "principle",
        "benchmark",
        "chat_template",
        "model",
    ]
)
"""Keys of a config whose texts are paths, or names on the Hub."""
SERVER = "a server"
"""In place of an address."""
OUTSIDE = ("/", "~/", "../")
"""Beginnings of a path that leads out of the current folder."""
_PATH = re.compile(r"(?<![\w/:.])(?:~|\.{1,2})?/(?:[\w.~@+-]+/)+([\w.~@+-]+)")


@dataclass(frozen=True)
class PushedModel:
    """What a user names: a model folder, and the run it belongs to where there is one.

    Attributes:
        model: the folder with weights.
        run: the run folder, or None.
    """

    model: Path
    run: Path | None

    @property
    def is_adapter(self) -> bool:
        """Whether the weights need a base."""
        return (self.model / ADAPTER_CONFIG).exists()


def find_model(place: Path) -> PushedModel:
    """A run folder, its `final/`, or an exported model.

    Raises:
        OutputError: there is no such folder, or no model in it.
    """
    if not place.is_dir():
        raise OutputError(
            f"There is no folder {place}.", allowed="a run folder, its `final` folder, or an exported model"
        )
    model = place / "final" if (place / "final").is_dir() else place
    if not any(model.glob("*.safetensors")):
        is_run = (place / "config.yaml").exists()
        raise OutputError(
            f"{place} holds no trained model: there are no weights in {model}.",
            allowed="a run that is complete, its `final` folder, or an exported model",
            fix="complete the run with --resume" if is_run else "name the run folder",
        )
    return PushedModel(model, model.parent if (model.parent / "config.yaml").exists() else None)


def stage(
    source: PushedModel, model: Path, folder: Path, *, repo: str, base: str | None, samples: bool
) -> None:
    """Copy what is published of a model into an empty folder, as `repo` will hold it.

    Args:
        source: where the user's files are.
        model: the folder with weights; that of `source`, or a merged model made from it.
        folder: an empty folder.
        repo: OWNER/NAME.
        base: the base's name on the Hub, in place of the one it was trained with.
        samples: whether a policy's samples are published too.

    Raises:
        ModelError: an adapter's base is a local folder, and no `base` is given.
        DataError: a line of samples.jsonl is not JSON.
    """
    for pattern in PUBLISHED:
        for file in model.glob(pattern):
            if file.is_file() and not file.name.startswith("."):
                shutil.copyfile(file, folder / file.name)
    trained_on = _trained_on(source.model)
    name = base or (known_as(trained_on) if trained_on else None)
    if trained_on and base is None and (folder / ADAPTER_CONFIG).exists() and not is_hub_name(str(name)):
        raise ModelError(
            f"The adapter's base is a local folder, {trained_on}: nobody else could load it.",
            allowed="an adapter on a base of the Hub, or a merged model",
            fix="--base OWNER/NAME if the base is on the Hub; else --merged",
        )
    hub_base = name if name is not None and is_hub_name(name) else None
    local = {str(source.model), str(source.model.absolute()), str(model), str(model.absolute())}
    addresses: set[str] = set()
    places = _local_places(source.run)
    for file in folder.glob("*.json"):
        if file.name in VOCABULARIES:
            continue
        content = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            if (key := BASE_KEYS.get(file.name)) in content:
                content[key] = hub_base or Path(str(name)).name
            for facts in (content, content.get(TRAINED_WHOLE)):
                if isinstance(facts, dict) and isinstance(rewards := facts.get("reward"), list):
                    addresses |= _addresses(rewards)
                    facts["reward"] = [_public_reward(reward) for reward in rewards]
        content = _without_paths(content, places)
        file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
    if (folder / CARD).exists():
        text = (folder / CARD).read_text(encoding="utf-8")
        public = dict.fromkeys(addresses, SERVER) | {place: _last_part(place) for place in places}
        if trained_on == "embedded" and hub_base:
            public[base_literal("embedded")] = repr(hub_base)
        text = _replaced(text, public)
        (folder / CARD).write_text(_public_card(text, repo, local, trained_on, hub_base), "utf-8")
    if samples and source.run is not None and (source.run / SAMPLES).exists():
        write_samples(source.run / SAMPLES, folder / SAMPLES_FILE)


def write_samples(lines: Path, target: Path) -> None:
    """samples.jsonl as parquet, with the columns of all rows but `PRIVATE_COLUMNS`; nested values as they
    are, prompts as lists of messages.

    Raises:
        DataError: a line is not JSON.
    """
    rows: list[dict[str, Any]] = []
    with lines.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise DataError(f"{lines}:{number} is not JSON: {error}", fix="take the line out") from None
    names = dict.fromkeys(name for row in rows for name in row if name not in PRIVATE_COLUMNS)
    columns = {name: [row.get(name) for row in rows] for name in names}
    pq.write_table(pa.table({name: _column(values) for name, values in columns.items()}), target)


def _column(values: list[Any]) -> pa.Array:
    if all(value is None for value in values):
        return pa.array(values, pa.float64())
    if any(isinstance(value, float) for value in values):
        values = [float(value) if isinstance(value, int) else value for value in values]
    return pa.array(values)


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of every file, by its path in the repository."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.stat().st_size for file in files}


def _trained_on(model: Path) -> str | None:
    """The base as the model's files name it; None of a model without one."""
    for name in BASE_KEYS:
        if (model / name).exists():
            content: Mapping[str, Any] = json.loads((model / name).read_text(encoding="utf-8"))
            if value := content.get(BASE_KEYS[name]):
                return str(value)
    return None


def _public_card(text: str, repo: str, local: set[str], trained_on: str | None, base: str | None) -> str:
    """The card with the repository in place of the local folder, and without any other local path."""
    card: Any = ModelCard(text, ignore_metadata_errors=True)
    if card.data.base_model != base and (base or not is_hub_name(str(card.data.base_model))):
        card.data.base_model = base
    text = str(card)
    text = _replaced(text, {f"{path!r}": f"{repo!r}" for path in local})
    if trained_on and base:
        text = text.replace(trained_on, base) if "/" in trained_on else text
    return _PATH.sub(r"\1", text)


def _replaced(text: str, public: Mapping[str, str]) -> str:
    """The text with each key replaced by its value; longer keys first, since one may contain another."""
    for private in sorted(public, key=len, reverse=True):
        text = text.replace(private, public[private])
    return text


def _local_places(run: Path | None) -> set[str]:
    """The paths in the config of a run: data, models, functions; names on the Hub are none."""
    found, waiting = set[str](), list[tuple[str, Any]]()
    if run is not None:
        waiting.append(("", yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))))
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.items()
        elif isinstance(value, list):
            waiting += [(key, item) for item in value]
        elif key in PLACES and isinstance(value, str) and "/" in value and not is_hub_name(value):
            found.add(value)
    return found


def _addresses(rewards: Sequence[Mapping[str, Any]]) -> set[str]:
    """The addresses of servers in a policy's rewards."""
    found = {reward.get("server") for reward in rewards}
    found |= {(reward.get("judge") or {}).get("url") for reward in rewards}
    return {str(address) for address in found if address}


def _public_reward(reward: Mapping[str, Any]) -> dict[str, Any]:
    """What a reward is, its weight and its name: no address, no folder, no text or setting of a request."""
    shown: dict[str, Any] = {}
    for key, value in reward.items():
        if value in (None, []) or key not in ("name", "weight", "principles", *KINDS):
            continue
        if key == "server":
            shown[key] = SERVER
        elif key == "judge":
            shown[key] = {"model": _last_part(str(value["model"]))}
        elif key == "ensemble":
            shown[key] = {
                "rule": value["rule"],
                "adapters": [_last_part(str(place)) for place in value["adapters"]],
            }
        else:
            shown[key] = _last_part(value) if key in KINDS else value
    return shown


def _last_part(place: str) -> str:
    """The end of a path, `FILE.py:NAME` included; a name on the Hub as it is."""
    return place if is_hub_name(place) else Path(place).name


def _without_paths(value: Any, places: Collection[str] = ()) -> Any:
    """A JSON value in which a string that is one of `places`, or a path outside the current folder, is its
    last part."""
    if isinstance(value, dict):
        return {name: _without_paths(item, places) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_paths(item, places) for item in value]
    if isinstance(value, str) and value in places:
        return _last_part(value)
    if isinstance(value, str) and value.startswith(OUTSIDE) and len(value) < 4096 and "\n" not in value:
        return Path(value).name if _PATH.fullmatch(value) or Path(value).exists() else value
    return value
