"""What a process needs before a command runs: its own packages, a home, text that can be printed, quiet libraries."""

from __future__ import annotations

import codecs
import getpass
import importlib.util
import io
import locale
import logging
import os
import sys
import tempfile
from pathlib import Path

PACKAGES = ("reward", "policy")
"""Packages of ours beside `rlhf`, whose names a user's own modules may have."""

QUIET = {
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}
"""Environment variables that keep libraries from talking over a run; one that is set already stays."""

PRIVATE = {"HF_HUB_DISABLE_TELEMETRY": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
"""Usage statistics of TRL, huggingface_hub and vLLM are off, unless these variables are set to 0."""

ALLOCATOR = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
"""On a GPU rows differ in length, and fixed segments would fragment its memory; vLLM's sleep mode switches it off for itself."""

CHATTY = ("bitsandbytes", "torch._library.triton")
"""Loggers that report optional kernels a machine without a GPU does not have."""


SPINS = "1000"
"""How long a thread of OpenMP spins while it waits for another, before it sleeps; by itself it spins 300 times as long. No number
changes. Where another program takes one of two cores a small product is 29 times as fast, and on an idle machine it takes 11 %
longer (`benchmarks/busy_machine.py`); sleeping at once (OMP_WAIT_POLICY=passive) would take 70 % longer there."""


def prepare() -> None:
    """Make this process fit to run a command; everything is left alone that the user has set."""
    ensure_utf8()
    for name, value in (QUIET | PRIVATE).items():
        os.environ.setdefault(name, value)
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)  # read when torch loads OpenMP
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # its older name
        os.environ.setdefault(*next(iter(ALLOCATOR.items())))
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    make_streams_safe()
    ensure_home()
    claim_packages()


def ensure_utf8() -> None:
    """Start this process again in Python's UTF-8 mode where the locale is another: TRL cannot be imported there."""
    encoding = codecs.lookup(locale.getpreferredencoding(do_setlocale=False)).name
    if encoding == "utf-8" or os.environ.get("PYTHONUTF8") == "1":
        return
    os.environ["PYTHONUTF8"] = "1"
    try:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606  # the same words again
    except OSError as error:
        print(
            f"Error: the locale is {encoding}, not UTF-8 ({error}).\nDo this: export PYTHONUTF8=1",
            file=sys.stderr,
        )
        raise SystemExit(2) from None


def make_streams_safe() -> None:
    """Let output be written under any locale: a character that it does not have becomes its escape, not an exception."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def ensure_home() -> None:
    """Give libraries a home and a user name where the system knows none, as in a container with a bare user id."""
    try:
        Path.home()
    except RuntimeError:
        home = Path(tempfile.gettempdir()) / f"rlhf-home-{os.getuid()}"
        home.mkdir(mode=0o700, exist_ok=True)
        if home.stat().st_uid != os.getuid():
            raise SystemExit(f"Error: {home} belongs to another user.\nDo this: export HOME=FOLDER") from None
        os.environ["HOME"] = str(home)
        print(
            f"Note: this user has no home folder; caches go to {home}. Set HOME to change it.",
            file=sys.stderr,
        )
    try:
        getpass.getuser()
    except (KeyError, OSError):  # torch names a cache folder by it
        os.environ["LOGNAME"] = f"uid{os.getuid()}"


def claim_packages() -> None:
    """Make `reward` and `policy` ours, wherever a user's modules of these names come before them on `sys.path`."""
    root = Path(__file__).parent.parent
    for name in PACKAGES:
        own = root / name / "__init__.py"
        loaded = sys.modules.get(name)
        spec = importlib.util.find_spec(name) if loaded is None else loaded.__spec__
        if spec is not None and spec.origin is not None and Path(spec.origin).resolve() == own.resolve():
            continue
        ours = importlib.util.spec_from_file_location(name, own, submodule_search_locations=[str(own.parent)])
        assert ours is not None  # it ends in .py
        assert ours.loader is not None
        module = importlib.util.module_from_spec(ours)
        sys.modules[name] = module
        ours.loader.exec_module(module)
