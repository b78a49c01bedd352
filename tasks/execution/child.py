"""A step in a process of its own.

It speaks over a connection: progress as a tuple, a warning as text, and at the end a dictionary with
`summary` and `device`, or with `error` (class name) and `message`. Everything that is logged, or printed by
libraries, goes to a log file.
"""

import gc
import importlib
import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from filelock import FileLock

from data.artifacts.bucket import forget_bucket
from data.artifacts.files import storage_errors
from data.artifacts.manifest import LOG_NAME
from data.artifacts.options import Options
from data.errors import OutOfMemory, PipelineError
from data.orphans import end_with_channel
from data.progress import Seldom
from models.detector.config_sources import dotted
from tasks.execution.context import StepContext

logger = logging.getLogger(__name__)

NVML_CHECK = "PYTORCH_NVML_BASED_CUDA_CHECK"
"""Environment variable with which PyTorch looks for a GPU without its driver."""


_OURS = ("data", "models", "tasks")
"""Packages whose warnings are for users."""

_MOST_WARNINGS = 20
"""Of a step that its run is told; all are in the log."""


class _Speaker(logging.Handler):
    """Tells the run of progress and warnings, whichever thread has them; of a process' forks nothing."""

    def __init__(self, channel: Connection):
        super().__init__(logging.WARNING)
        self._channel = channel
        self._left = _MOST_WARNINGS
        self._speaking = threading.Lock()
        self._process = os.getpid()

    def send(self, message: Any) -> None:
        """Send one message whole."""
        if os.getpid() == self._process:
            with self._speaking:
                self._channel.send(message)

    def emit(self, record: logging.LogRecord) -> None:
        """Send the first warnings, each with its cause."""
        self._left -= 1
        try:
            if self._left >= 0:
                self.send(_told(record))
            elif self._left == -1:
                self.send(f"more warnings are in {LOG_NAME}")
        except Exception:  # noqa: BLE001  # logging has a way for these
            self.handleError(record)


class _Gatherer(logging.Handler):
    """Keeps warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a warning."""
        try:
            self.texts.append(_told(record))
        except Exception:  # noqa: BLE001  # logging has a way for these
            self.handleError(record)


def _told(record: logging.LogRecord) -> str:
    cause = record.exc_info[1] if record.exc_info else None
    return record.getMessage() + (f": {cause}" if cause else "")


@contextmanager
def gathered_warnings() -> Iterator[list[str]]:
    """What users should know of what is done meanwhile, in a process that does not speak to the run."""
    gatherer = _Gatherer()
    _attach(gatherer)
    try:
        yield gatherer.texts
    finally:
        for package in _OURS:
            logging.getLogger(package).removeHandler(gatherer)


def _attach(handler: logging.Handler) -> None:
    for package in _OURS:
        logging.getLogger(package).addHandler(handler)


@dataclass(frozen=True, slots=True)
class StepSpec:
    """What the process is to do; see `StepContext`.

    Attributes:
        visible_gpus: what `CUDA_VISIBLE_DEVICES` says to it; None: nothing, it sees all.
    """

    module: str
    key: str
    options: Options
    foreign: dict[str, str]
    inputs: dict[str, Path]
    work: Path
    root: Path
    num_workers: int
    visible_gpus: str | None


def call(module: str, function: str, *arguments: Any) -> Any:
    """Call a function of a module that is slow to import, or that this process may not import."""
    return getattr(importlib.import_module(module), function)(*arguments)


def run_step(spec: StepSpec, channel: Connection) -> None:
    """Run one step and send its summary, or what is wrong for the user."""
    os.setpgrp()  # all that it starts can be killed with it
    gc.freeze()  # what was imported before the fork: MMEngine collects for every data set, 0.4 s each
    end_with_channel(channel)
    forget_bucket()
    _log_to(spec.work / LOG_NAME)
    speaker = _Speaker(channel)
    _attach(speaker)
    use_threads(spec.num_workers)
    os.environ.pop(NVML_CHECK, None)  # it does not see whether the driver is too old
    if spec.visible_gpus is not None:  # in time: CUDA reads it when it is first used
        os.environ["CUDA_VISIBLE_DEVICES"] = spec.visible_gpus
    context = StepContext(
        options=spec.options,
        inputs=spec.inputs,
        out=spec.work / "out",
        work=spec.work,
        key=spec.key,
        root=spec.root,
        num_workers=spec.num_workers,
        progress=Seldom(lambda *report: speaker.send(report)),
        foreign=spec.foreign,
    )
    try:
        with users_errors(spec.root, spec.options), FileLock(spec.work / "child.lock"):
            context.out.mkdir(exist_ok=True)
            summary = importlib.import_module(spec.module).run(context)
    except PipelineError as error:
        speaker.send({"error": type(error).__name__, "message": str(error)})
    else:
        speaker.send({"summary": summary, "device": _device()})


@contextmanager
def users_errors(root: Path, options: Options) -> Iterator[None]:
    """Turn what a user can mend of a full disk or a device without memory into errors that say how."""
    try:
        with storage_errors(root):
            yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        logger.exception("the memory of the device does not suffice")
        raise OutOfMemory(
            f"the memory of the device does not suffice: {_to_need_less(options)}"
        ) from error


def tell_gpu(channel: Connection) -> None:
    """Send whether this process can use a GPU: not if the one that it was forked from has used one."""
    os.environ.pop(NVML_CHECK, None)
    channel.send(call("torch.cuda", "is_available"))


def _log_to(path: Path) -> None:
    """Append all output of this process, and that of processes it starts, to a file."""
    with path.open("a") as log:
        for descriptor in (1, 2):
            os.dup2(log.fileno(), descriptor)
    log_plainly()


def log_plainly() -> None:
    """Let what is logged in this process stand in its output, in lines that say when and whence."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s", force=True
    )


def use_threads(count: int) -> None:
    """Let torch, and libraries that are still to be imported, work with so many threads."""
    os.environ["OMP_NUM_THREADS"] = str(count)
    torch = sys.modules.get("torch")
    if torch is not None:  # it has read the variable already
        torch.set_num_threads(count)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it says that a device's memory does not suffice."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


def _to_need_less(options: Options) -> str:
    """Which options to turn, and how far."""
    sizes = {
        name: value
        for name, value in dotted(options.model_dump()).items()
        if name.split(".")[-1] == "batch_size"
    }
    if not sizes:
        return "another process may have taken it"
    smaller = (f"{name}={max(n // 2, 1)} (now {n})" for name, n in sizes.items())
    return f"{' or '.join(smaller)} needs less"


def _device() -> str:
    """The device that models ran on; `cpu` where no torch was needed."""
    torch = sys.modules.get("torch")
    return "cuda" if torch is not None and torch.cuda.is_available() else "cpu"
