"""Process setup before a command runs: environment variables, encodings, home folder, import order."""

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
"""Packages of this project beside `rlhf`, whose names a user's modules may have."""

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
"""Environment variables that silence libraries; variables that are already set are kept."""

PRIVATE = {"HF_HUB_DISABLE_TELEMETRY": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
"""Telemetry of TRL, huggingface_hub and vLLM is off, unless these variables are set to 0."""

ALLOCATOR = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
"""Rows differ in length, so fixed segments would fragment GPU memory; vLLM's sleep mode switches this off for
itself."""

CHATTY = ("bitsandbytes", "torch._library.triton")
"""Loggers that warn about optional kernels, which a machine without a GPU does not have."""


SPINS = "1000"
"""Spin count of a waiting OpenMP thread before it sleeps; the default is 300 times as high. Results do not
change. With another program on one of two cores, a small matrix product is 29 times as fast; on an idle
machine it takes 11 % longer (`benchmarks/busy_machine.py`). Sleeping at once (OMP_WAIT_POLICY=passive) would
take 70 % longer there."""


def prepare() -> None:
    """Set up this process for a command; settings of the user are kept."""
    open_closed_streams()
    ensure_folder()
    ensure_utf8()
    for name, value in (QUIET | PRIVATE).items():
        os.environ.setdefault(name, value)
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)  # read when torch loads OpenMP
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # the older name of the variable
        os.environ.setdefault(*next(iter(ALLOCATOR.items())))
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    make_streams_safe()
    ensure_home()
    claim_packages()


def ensure_folder() -> None:
    """Exit with a message where the working directory was deleted: paths and imports need it."""
    try:
        Path.cwd()
    except OSError as error:
        print(
            f"Error: the current folder cannot be used ({error.strerror}).\nDo this: cd FOLDER",
            file=sys.stderr,
        )
        raise SystemExit(2) from None


def ensure_utf8() -> None:
    """Restart this process in Python's UTF-8 mode under any other locale, where TRL cannot be imported."""
    encoding = codecs.lookup(locale.getpreferredencoding(do_setlocale=False)).name
    if encoding == "utf-8" or os.environ.get("PYTHONUTF8") == "1":
        return
    os.environ["PYTHONUTF8"] = "1"
    try:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606  # the same arguments
    except OSError as error:
        print(
            f"Error: the locale is {encoding}, not UTF-8 ({error}).\nDo this: export PYTHONUTF8=1",
            file=sys.stderr,
        )
        raise SystemExit(2) from None


def open_closed_streams() -> None:
    """Open the null device in place of standard streams that are closed (`>&-`).

    A file that is opened later would have their number otherwise, and receive what libraries print.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
        if getattr(sys, name) is None:
            mode = "w" if number else "r"
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


class LastingStream(io.TextIOWrapper):
    """A text stream whose reader may leave: after a broken pipe the rest of the output is dropped.

    A run is not lost with the `head` or the terminal that showed it.
    """

    def write(self, text: str) -> int:
        """Write, or drop the text."""
        try:
            return super().write(text)
        except BrokenPipeError:
            self._drop()
            return len(text)

    def flush(self) -> None:
        """Flush, or drop what is waiting."""
        try:
            super().flush()
        except BrokenPipeError:
            self._drop()

    def _drop(self) -> None:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.fileno())
        os.close(null)


def make_streams_safe() -> None:
    """Let stdout and stderr escape what they cannot encode, and drop what nobody reads."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, io.TextIOWrapper):
            continue
        if stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
        if stream is getattr(sys, f"__{name}__"):  # which stays, and with it the buffer they share
            lasting = LastingStream(
                stream.buffer,
                encoding=stream.encoding,
                errors=stream.errors,
                line_buffering=stream.line_buffering,
                write_through=stream.write_through,
            )
            setattr(sys, name, lasting)


def ensure_home() -> None:
    """Set HOME and LOGNAME for a user id without an account, as in a container: libraries need both."""
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
    """Import this project's `reward` and `policy`, even if a user's modules of these names come first on
    `sys.path`."""
    root = Path(__file__).parent.parent
    for name in PACKAGES:
        file = root / name / "__init__.py"
        loaded = sys.modules.get(name)
        present = importlib.util.find_spec(name) if loaded is None else loaded.__spec__
        if (
            present is not None
            and present.origin is not None
            and Path(present.origin).resolve() == file.resolve()
        ):
            continue
        spec = importlib.util.spec_from_file_location(
            name, file, submodule_search_locations=[str(file.parent)]
        )
        assert spec is not None  # the file name ends in .py
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
