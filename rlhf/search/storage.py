"""The study of a search in its storage, which all processes of the search share.

A storage URL may contain a password, which is never written: files and messages use `shown_url`.
"""

from __future__ import annotations

import json
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
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from rlhf.config.search import PruningConfig, SearchConfig
from rlhf.core.errors import ConfigError

FILE = "study.db"
BUSY_SECONDS = 60
"""Seconds to wait for another process that writes to the same SQLite file."""
HEARTBEAT_SECONDS, GRACE_SECONDS = 10, 30
"""Seconds between heartbeats, and without one until a trial is queued again."""
RETRY_OF, QUEUED = "failed_trial", "fixed_params"
"""System attributes of Optuna: the number of a retry's first attempt; the values of a queued trial."""
IDENTITY, SUPERSEDED = "searched", "superseded"
"""User attributes: the searched config of a study; whether a trial is of an earlier, invalid config."""
STORAGE_ERRORS = (SQLAlchemyError, optuna.exceptions.OptunaError)
"""Errors of a storage that is down, busy or of another version."""
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)

_VARIABLE = re.compile(r"\$\{(\w+)\}")


class SharedStudy:
    """A study with its storage. An interrupted trial and its retries by Optuna count as one trial.

    Attributes:
        study: Optuna's study.
    """

    def __init__(self, study: optuna.Study, storage: RDBStorage) -> None:
        self.study, self._storage = study, storage

    def numbered(self) -> dict[int, FrozenTrial]:
        """The last attempt of every trial by its number, the count of earlier trials without retries."""
        numbers: dict[int, int] = {}
        latest: dict[int, FrozenTrial] = {}
        for trial in self.study.get_trials(deepcopy=False):
            if is_surplus(trial):
                continue
            original = trial.system_attrs.get(RETRY_OF)
            number = len(set(numbers.values())) if original is None else numbers[original]
            numbers[trial.number] = number
            latest[number] = trial
        return latest

    def trials(self) -> dict[int, FrozenTrial]:
        """As `numbered`, without the trials of an earlier config."""
        return {
            number: trial for number, trial in self.numbered().items() if SUPERSEDED not in trial.user_attrs
        }

    def number_of(self, trial: Trial) -> int:
        """The number of a running trial."""
        return next(number for number, last in self.numbered().items() if last.number == trial.number)

    def finished(self) -> int:
        """The number of complete, pruned and failed trials."""
        return sum(trial.state in FINISHED for trial in self.trials().values())

    def seed(self, seed: int, number: int) -> None:
        """Make the sampler depend on seed, number and results only, not on the process."""
        self.study.sampler = sampler(seed, number)

    def requeue_stale(self) -> None:
        """Queue again, with the same values, trials without a heartbeat."""
        with _no_experimental_warnings():
            optuna.storages.fail_stale_trials(self.study)

    def requeue(self, number: int) -> None:
        """Queue again, with the same values, a trial that was interrupted."""
        trial = self.numbered()[number]
        if trial.state == TrialState.FAIL:
            retry()(self.study, trial)

    def set_aside(self) -> None:
        """Remove all unfinished trials from the study after a change of the config."""
        for trial in self.trials().values():
            # Private API: Optuna has no other way to end a queued trial.
            self._storage.set_trial_user_attr(trial._trial_id, SUPERSEDED, True)  # noqa: SLF001
            self._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)  # noqa: SLF001


def is_surplus(trial: FrozenTrial) -> bool:
    """Whether Optuna created this trial for a process whose queue was empty; it has no values and is not
    run."""
    return QUEUED not in trial.system_attrs and not trial.params


def retry() -> RetryHeartbeatStaleTrialCallback:
    """Optuna's callback that queues a trial again, with its values and reported metrics."""
    with _no_experimental_warnings():
        return RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=True)


@contextmanager
def _no_experimental_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def sampler(seed: int, number: int) -> TPESampler:
    """The sampler of one trial. Running trials count as bad ones, so that processes explore different
    values."""
    return TPESampler(seed=(1_000_003 * seed + number) % 2**32, constant_liar=True)


def pruner(config: PruningConfig | None) -> BasePruner:
    """Optuna's pruner of this name; the caller checks `startup_trials`."""
    if config is None:
        return NopPruner()
    if config.method == "median":
        return MedianPruner(n_startup_trials=0, n_warmup_steps=config.warmup_updates)
    return SuccessiveHalvingPruner(min_resource=max(1, config.warmup_updates))


def open_study(search: SearchConfig, base: Mapping[str, Any]) -> SharedStudy:
    """Open or create the study.

    Args:
        base: the config of the trials.

    Raises:
        ConfigError: the storage cannot be used, or the study has results of another search.
    """
    searched = search.model_dump(mode="json", include={"command", "parameters", "objective", "pruning"})
    searched = json.loads(
        json.dumps({**searched, "base": {key: base[key] for key in base if key != "output"}})
    )
    with _usable(search):
        with _no_experimental_warnings():
            storage = RDBStorage(
                _escaped(_url(search)),
                engine_kwargs=_engine(search),
                heartbeat_interval=HEARTBEAT_SECONDS,
                grace_period=GRACE_SECONDS,
                heartbeat_stale_trial_callback=retry(),
            )
        study = optuna.create_study(
            storage=storage,
            study_name=search.study,
            direction=search.objective.direction,
            pruner=pruner(search.pruning),
            load_if_exists=True,
        )
        shared = SharedStudy(study, storage)
        _check_same_search(shared, searched, search)
    return shared


def look_at_study(search: SearchConfig) -> SharedStudy | None:
    """The study, or None if it does not exist; creates nothing.

    Raises:
        ConfigError: the storage cannot be used.
    """
    with _usable(search):
        url = make_url(_url(search))
        file = Path(url.database or "") if url.get_backend_name() == "sqlite" else None
        if file and not file.exists() and (file.parent.is_dir() or search.storage is None):
            return None  # connecting to SQLite would create it
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
    """Convert errors of the database and its libraries into a `ConfigError`."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    except ImportError:
        name = make_url(_url(search)).drivername
        fix = "pip install a driver and name it, as in postgresql+psycopg://... or mysql+pymysql://..."
        raise _unusable(search, f"no driver for {name} is installed", fix) from None
    except (*STORAGE_ERRORS, RuntimeError, TypeError, ValueError) as error:  # drivers raise any of these
        raise _unusable(search, reason(error, search), "start the database, or correct `storage`") from None


def shown_url(url: str) -> str:
    """A storage URL without its password and its query, which may contain secrets."""
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
    """The URL with braces escaped, as Optuna substitutes `{SCHEMA_VERSION}`."""
    return url.replace("{", "{{").replace("}", "}}")


def _engine(search: SearchConfig) -> dict[str, Any]:
    if _url(search).startswith("sqlite"):
        return {"connect_args": {"timeout": BUSY_SECONDS}}
    return {"pool_pre_ping": True}  # an idle connection may be closed during a trial of hours


def _unusable(search: SearchConfig, reason: str, fix: str) -> ConfigError:
    place = shown_url(search.storage) if search.storage else str(search.output / FILE)
    return ConfigError(
        f"storage {place}: {reason}",
        allowed="a SQLAlchemy URL, such as postgresql+psycopg://USER:${PASSWORD}@HOST/DATABASE; or null, "
        "for a file",
        fix=fix,
    )


def reason(error: Exception, search: SearchConfig) -> str:
    """The first line of the database's error, without the secrets of the URL."""
    message = str(error.__cause__ or error).strip() or type(error).__name__
    text = re.sub(r"^\([\w.]+\) ", "", message.splitlines()[0])
    hidden = [os.environ.get(name, "") for name in _VARIABLE.findall(search.storage or "")]
    try:
        parsed = make_url(_url(search))
    except ArgumentError:
        return "not a URL"
    for secret in filter(None, [*hidden, parsed.password, *parsed.query.values()]):
        text = text.replace(str(secret), "***")
    return text


def _check_same_search(shared: SharedStudy, searched: dict[str, Any], search: SearchConfig) -> None:
    """Store the searched config in the study; a different one is refused once a trial has finished.

    Before that, a changed config replaces it, and unfinished trials of the old config are removed.
    """
    study = shared.study
    before = study.user_attrs.get(IDENTITY, searched)
    changed = list(_changes(before, searched))
    finished = shared.finished()
    other_direction = search.objective.direction != study.direction.name.lower()
    if changed and (finished or other_direction):
        raise ConfigError(
            "\n".join([f"the study {search.study!r} has {finished} trials of another search:", *changed]),
            allowed="with results, only trials, timeout, seed, launch, output and the storage's address may "
            "change",
            fix="restore the old config; or use another --output (with `storage`: another `study`)",
        )
    if any(before.get(key) != searched.get(key) for key in ("command", "base", "parameters")):
        shared.set_aside()
    if study.user_attrs.get(IDENTITY) != searched:
        study.set_user_attr(IDENTITY, searched)


def _changes(before: Any, now: Any, key: str = "") -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for name in {**before, **now}:
            yield from _changes(before.get(name), now.get(name), f"{key}.{name}" if key else name)
    elif before != now:
        yield f"  {key}: was {json.dumps(before)}, is {json.dumps(now)}"
