"""Where a search's results are kept: the study in its storage, shared by every process that names both.

A storage URL may hold a password. It is used here and written nowhere: files and messages get `shown_url`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import TPESampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from rlhf.config.search import PruningConfig, SearchConfig
from rlhf.core.errors import ConfigError

FILE = "study.db"
BUSY_SECONDS = 60
"""How long a process waits for another one that is writing to the same SQLite file."""
TOLD, SUPERSEDED = "told", "superseded"
"""Attributes of a study and of a trial: what was searched; and whether the trial is of an earlier, mended config."""
STORAGE_ERRORS = (SQLAlchemyError, optuna.exceptions.OptunaError)
"""What a storage raises that is down, busy or of another version."""
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)

_VARIABLE = re.compile(r"\$\{(\w+)\}")


class SharedStudy:
    """A study of Optuna's with the storage it is in.

    Attributes:
        study: Optuna's study.
    """

    def __init__(self, study: optuna.Study, storage: RDBStorage) -> None:
        self.study, self._storage = study, storage

    def trials(self) -> list[FrozenTrial]:
        """Every trial that counts, in order of numbers."""
        return [
            trial for trial in self.study.get_trials(deepcopy=False) if SUPERSEDED not in trial.user_attrs
        ]

    def open_trial(self, number: int, seed: int) -> Trial:
        """A running trial by its number, with a sampler whose draws depend on seed, number and results alone.

        So a search that was killed and started again proposes what the unbroken one would have.
        """
        self.study.sampler = sampler(seed, number)
        study_id = self._storage.get_study_id_from_name(self.study.study_name)
        return Trial(self.study, self._storage.get_trial_id_from_study_id_trial_number(study_id, number))


def sampler(seed: int, number: int) -> TPESampler:
    """The sampler of one trial. Trials still running count as bad ones, so that processes do not crowd together."""
    return TPESampler(seed=(1_000_003 * seed + number) % 2**32, constant_liar=True)


def pruner(told: PruningConfig | None) -> BasePruner:
    """Optuna's pruner of this name. How many trials must have completed first is up to the caller."""
    if told is None:
        return NopPruner()
    if told.method == "median":
        return MedianPruner(n_startup_trials=0, n_warmup_steps=told.warmup_updates)
    return SuccessiveHalvingPruner(min_resource=max(1, told.warmup_updates))


def open_study(search: SearchConfig, base: Mapping[str, Any]) -> SharedStudy:
    """Open the study, or create it.

    Args:
        base: the config that every trial starts from.

    Raises:
        ConfigError: the storage cannot be used, or its study has results of another search.
    """
    told = search.model_dump(mode="json", include={"command", "parameters", "objective", "pruning"})
    told = json.loads(json.dumps({**told, "base": {key: base[key] for key in base if key != "output"}}))
    with _usable(search):
        storage = RDBStorage(_escaped(_url(search)), engine_kwargs=_engine(search))
        study = optuna.create_study(
            storage=storage,
            study_name=search.study,
            direction=search.objective.direction,
            pruner=pruner(search.pruning),
            load_if_exists=True,
        )
        shared = SharedStudy(study, storage)
        _check_same_search(shared, told, search)
    return shared


def look_at_study(search: SearchConfig) -> SharedStudy | None:
    """The study as it is; None where there is none yet. Nothing is created.

    Raises:
        ConfigError: the storage cannot be used.
    """
    with _usable(search):
        url = make_url(_url(search))
        file = Path(url.database or "") if url.get_backend_name() == "sqlite" else None
        if file and not file.exists() and (file.parent.is_dir() or search.storage is None):
            return None  # asking SQLite would create it
        engine = sqlalchemy.create_engine(url, **_engine(search))
        if not sqlalchemy.inspect(engine).has_table("studies"):
            return None
        storage = RDBStorage(_escaped(_url(search)), engine_kwargs=_engine(search), skip_table_creation=True)
        try:
            return SharedStudy(optuna.load_study(study_name=search.study, storage=storage), storage)
        except KeyError:
            return None


@contextmanager
def _usable(search: SearchConfig) -> Iterator[None]:
    """Turns what a database and its libraries raise into our error."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    except ImportError:
        name = make_url(_url(search)).drivername
        fix = "pip install one, and name it, as in postgresql+psycopg://... or mysql+pymysql://..."
        raise _unusable(search, f"no driver for {name} is installed", fix) from None
    except (*STORAGE_ERRORS, RuntimeError, TypeError, ValueError) as error:  # drivers raise what they like
        raise _unusable(search, reason(error, search), "start the database, or mend the URL") from None


def shown_url(url: str) -> str:
    """A storage URL without its password, and without its query, which may hold one too."""
    if _VARIABLE.fullmatch(url):
        return url
    try:
        parsed = make_url(url)
    except ArgumentError:
        return "(not a URL)"
    query = "?..." if parsed.query else ""
    return parsed.set(query={}).render_as_string(hide_password=True) + query


def _url(search: SearchConfig) -> str:
    if search.storage is None:
        path = str((search.output / FILE).absolute())
        return URL.create("sqlite", database=path).render_as_string(hide_password=False)

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if name not in os.environ:
            raise ConfigError(
                f"storage: the environment variable {name} is not set", fix=f"export {name}=..."
            )
        return os.environ[name]

    return _VARIABLE.sub(value, search.storage)


def _escaped(url: str) -> str:
    """Optuna fills in `{SCHEMA_VERSION}`; any other brace is meant as it stands."""
    return url.replace("{", "{{").replace("}", "}}")


def _engine(search: SearchConfig) -> dict[str, Any]:
    if _url(search).startswith("sqlite"):
        return {"connect_args": {"timeout": BUSY_SECONDS}}
    return {"pool_pre_ping": True}  # a connection that idles for hours while a trial runs may be cut


def _unusable(search: SearchConfig, reason: str, fix: str) -> ConfigError:
    place = shown_url(search.storage) if search.storage else str(search.output / FILE)
    return ConfigError(
        f"storage {place}: {reason}",
        allowed="a SQLAlchemy URL, such as postgresql+psycopg://USER:${PASSWORD}@HOST/DATABASE; or null, for a file",
        fix=fix,
    )


def reason(error: Exception, search: SearchConfig) -> str:
    """The first line of what the database said, without what the URL hides."""
    said = str(error.__cause__ or error).strip() or type(error).__name__
    text = re.sub(r"^\([\w.]+\) ", "", said.splitlines()[0])
    hidden = [os.environ.get(name, "") for name in _VARIABLE.findall(search.storage or "")]
    try:
        parsed = make_url(_url(search))
    except ArgumentError:
        return "it is not a URL"
    for secret in filter(None, [*hidden, parsed.password, *parsed.query.values()]):
        text = text.replace(str(secret), "***")
    return text


def _check_same_search(shared: SharedStudy, told: dict[str, Any], search: SearchConfig) -> None:
    """Note what is searched; where something else was, that is refused once a trial has finished.

    Before that, a mended config takes over: trials that it would not run in the same way are set aside.
    """
    study = shared.study
    before = study.user_attrs.get(TOLD, told)
    changed = list(_changes(before, told))
    finished = sum(trial.state in FINISHED for trial in shared.trials())
    other_direction = search.objective.direction != study.direction.name.lower()
    if changed and (finished or other_direction):
        raise ConfigError(
            "\n".join([f"the study {search.study!r} holds {finished} trials of another search:", *changed]),
            allowed="with results, only trials, timeout, seed, launch, output and the storage's address may change",
            fix="the old config; or another --output (with a storage of your own: another `study`)",
        )
    if any(before.get(key) != told.get(key) for key in ("command", "base", "parameters")):
        for trial in shared.trials():
            shared.open_trial(trial.number, search.seed).set_user_attr(SUPERSEDED, True)
            study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
    if study.user_attrs.get(TOLD) != told:
        study.set_user_attr(TOLD, told)


def _changes(before: Any, now: Any, key: str = "") -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for name in {**before, **now}:
            yield from _changes(before.get(name), now.get(name), f"{key}.{name}" if key else name)
    elif before != now:
        yield f"  {key}: was {json.dumps(before)}, is {json.dumps(now)}"
