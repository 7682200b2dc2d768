"""The study of a search in its storage, which all processes of the search share.

A storage URL may contain a password, which is never written: messages use `hide_secrets`.
"""

from __future__ import annotations

import json
import math
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import TPESampler
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import SQLAlchemyError

from rlhf.config.search import PruningConfig, SearchConfig
from rlhf.core.errors import ConfigError
from rlhf.runs.files import differences

BUSY_SECONDS = 60
"""Seconds to wait for another process that writes to the same SQLite file."""
HEARTBEAT_SECONDS, GRACE_SECONDS = 10, 30
"""Seconds between heartbeats, and without one until a trial is queued again."""
RETRY_OF = "failed_trial"
"""Optuna's system attribute: the number of a retry's first attempt."""
IDENTITY, REASON = "searched", "reason"
"""User attributes: the searched config of a study; why a trial has failed."""
STORAGE_ERRORS = (SQLAlchemyError, optuna.exceptions.OptunaError)
"""Errors of a storage that is down, busy or of another version."""
VARIABLE = re.compile(r"\$\{(\w+)\}")
SECRET = re.compile(r"(?<=:)[^/:@]+(?=@)|(?<==)[^&]+")
"""A password or a query's value in a URL."""


def attempts(study: optuna.Study) -> list[FrozenTrial]:
    """The last attempt of every trial, by number; a retry has the number of the trial that it repeats."""
    trials = study.get_trials(deepcopy=False)
    return list({trial.system_attrs.get(RETRY_OF, trial.number): trial for trial in trials}.values())


def trials_of(study: optuna.Study) -> dict[int, FrozenTrial]:
    """The last attempt of each trial by number, without those that ended before they had values."""
    trials = enumerate(attempts(study))
    return {number: trial for number, trial in trials if trial.params or not trial.state.is_finished()}


def finished(study: optuna.Study) -> int:
    """The number of complete, pruned and failed trials."""
    return sum(trial.state.is_finished() for trial in trials_of(study).values())


def sampler(seed: int, number: int) -> TPESampler:
    """The sampler of one trial: it depends on seed, number and results, not on the process.

    Running trials count as bad ones, so that processes explore different values.
    """
    return TPESampler(seed=(1_000_003 * seed + number) % 2**32, constant_liar=True)


def retry() -> RetryHeartbeatStaleTrialCallback:
    """Optuna's callback that queues a trial again, with its values and reported metrics."""
    return RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=True)


def open_study(search: SearchConfig, base: Mapping[str, Any]) -> optuna.Study:
    """Open or create the study.

    Args:
        base: the config of the trials.

    Raises:
        ConfigError: the storage cannot be used, or the study has results of another search.
    """
    with _usable(search):
        storage = RDBStorage(
            _template(search),
            engine_kwargs={"pool_pre_ping": True},  # a connection may be closed during a trial of hours
            heartbeat_interval=HEARTBEAT_SECONDS,
            grace_period=GRACE_SECONDS,
            heartbeat_stale_trial_callback=retry(),
        )
        study = optuna.create_study(
            storage=storage,
            study_name=search.study,
            direction=search.objective.direction,
            pruner=_pruner(search.pruning),
            load_if_exists=True,
        )
        optuna.storages.fail_stale_trials(study)
        _check_same_search(study, search, base)
    return study


def existing_study(search: SearchConfig) -> optuna.Study | None:
    """The study, or None if it does not exist; nothing is created.

    Raises:
        ConfigError: the storage cannot be used.
    """
    with _usable(search):
        url = make_url(_url(search))
        file = Path(url.database or "") if url.get_backend_name() == "sqlite" else None
        if file and not file.exists() and (file.parent.is_dir() or search.storage is None):
            return None  # connecting to SQLite would create it
        if not sqlalchemy.inspect(sqlalchemy.create_engine(url)).has_table("studies"):
            return None
        storage = RDBStorage(_template(search), skip_table_creation=True)
        names = optuna.get_all_study_names(storage)
        return optuna.load_study(study_name=search.study, storage=storage) if search.study in names else None


def hide_secrets(text: str, search: SearchConfig) -> str:
    """A text without the passwords, query values and environment variables of the storage's URL."""
    plain = search.storage or ""
    variables = [os.environ.get(name, "") for name in VARIABLE.findall(plain)]
    for secret in filter(None, [*SECRET.findall(plain), *SECRET.findall(_url(search)), *variables]):
        text = text.replace(secret, "***")
    return text


def reason(error: Exception, search: SearchConfig) -> str:
    """The first line of the database's error, without the secrets of the URL."""
    text = str(error.__cause__ or error).strip() or type(error).__name__
    return hide_secrets(text.splitlines()[0], search)


def _pruner(config: PruningConfig | None) -> BasePruner:
    """Optuna's pruner of this name; the caller checks `startup_trials`, which halving does not have."""
    if config is None:
        return NopPruner()
    if config.method == "median":
        return MedianPruner(n_startup_trials=0, n_warmup_steps=config.warmup_updates)
    return SuccessiveHalvingPruner(min_resource=max(1, config.warmup_updates))


def _check_same_search(study: optuna.Study, search: SearchConfig, base: Mapping[str, Any]) -> None:
    """Refuse a changed config once there are results; before that, end the waiting trials of the old one."""
    searched = search.model_dump(mode="json", include={"command", "parameters", "objective", "pruning"})
    searched["base"] = json.loads(json.dumps({key: base[key] for key in base if key != "output"}))
    changed = differences(study.user_attrs.get(IDENTITY, searched), searched)
    states = [trial.state for trial in trials_of(study).values()]
    results = sum(state not in (TrialState.WAITING, TrialState.FAIL) for state in states)
    if changed and (results or search.objective.direction != study.direction.name.lower()):
        other = f"the study {search.study!r} has {results} trials of another search:"
        raise ConfigError(
            "\n".join([other, *changed.values()]),
            allowed="with results, only trials, timeout, seed, launch, output and the storage's address may "
            "change",
            fix="restore the old config; or use another --output (with `storage`: another `study`)",
        )
    waiting = states.count(TrialState.WAITING)
    if waiting and not all(key.startswith(("objective", "pruning")) for key in changed):
        study.optimize(_end, n_trials=waiting)
    study.set_user_attr(IDENTITY, searched)


def _end(trial: optuna.Trial) -> float:
    trial.set_user_attr(REASON, "failed: interrupted, and the config was changed")
    return math.nan


@contextmanager
def _usable(search: SearchConfig) -> Iterator[None]:
    """Convert errors of the database and its libraries into a `ConfigError`."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    try:
        yield
        return
    except ImportError:
        found = f"no driver for {make_url(_url(search)).drivername} is installed"
        fix = "pip install a driver and name it, as in postgresql+psycopg://... or mysql+pymysql://..."
    except (*STORAGE_ERRORS, RuntimeError, TypeError, ValueError) as error:  # drivers raise any of these
        found, fix = reason(error, search), "start the database, or correct `storage`"
    raise ConfigError(
        f"storage {hide_secrets(search.storage or _url(search), search)}: {found}",
        allowed="a SQLAlchemy URL, such as postgresql+psycopg://USER:${PASSWORD}@HOST/DATABASE; or null, "
        "for a file",
        fix=fix,
    )


def _url(search: SearchConfig) -> str:
    if search.storage is None:
        file = str((search.output / "study.db").absolute())
        url = URL.create("sqlite", database=file, query={"timeout": str(BUSY_SECONDS)})
        return url.render_as_string(hide_password=False)
    for name in VARIABLE.findall(search.storage):
        if name not in os.environ:
            raise ConfigError(
                f"storage: the environment variable {name} is not set", fix=f"export {name}=..."
            )
    return VARIABLE.sub(lambda match: os.environ[match[1]], search.storage)


def _template(search: SearchConfig) -> str:
    """The URL with braces escaped, as Optuna fills `{SCHEMA_VERSION}`."""
    return _url(search).replace("{", "{{").replace("}", "}}")
