"""A training in several processes: their progress and what is wrong become the step's."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from data import errors
from data.artifacts.options import Options
from data.errors import PipelineError, StepFailed
from data.orphans import end_with_parent
from data.progress import silent
from models.processes import Hosts, is_main_process, run_distributed
from tasks.execution.context import StepContext

_SECONDS_BETWEEN_LOOKS = 1.0

_FAILURE_NAME = "failure.json"
_PROGRESS_NAME = "progress.json"
"""In the work folder: what the processes say to the one that started them."""

OptionsT = TypeVar("OptionsT", bound=Options)


def train_in_processes(
    context: StepContext[OptionsT],
    train: Callable[[StepContext[OptionsT]], None],
    num_processes: int,
    hosts: Hosts | None = None,
) -> None:
    """Have several processes, on other hosts too, train together, and report what the first one does.

    What is wrong for the user ends them all; where one dies all go on from their newest checkpoint.

    Args:
        train: called by each process; importable by name, or of such a function partial.
        num_processes: of this host.
        hosts: each of which calls this; None: this one alone.

    Raises:
        PipelineError: by `train`, or as of `run_distributed`.
    """
    failure = context.work / _FAILURE_NAME
    if hosts is None or hosts.is_first:  # without which the others' processes do not begin
        failure.unlink(missing_ok=True)
        (context.work / _PROGRESS_NAME).unlink(missing_ok=True)
    quiet = replace(context, progress=silent)
    try:
        with _followed(context):
            run_distributed(
                _train_in_process, quiet, train, num_processes=num_processes, hosts=hosts
            )
    except PipelineError as error:
        if failure.exists():
            name, message = json.loads(failure.read_text())
            raise getattr(errors, name)(message) from error
        raise


def _train_in_process(
    context: StepContext[OptionsT], train: Callable[[StepContext[OptionsT]], None]
) -> None:
    end_with_parent()
    failure = context.work / _FAILURE_NAME
    if failure.exists():
        raise StepFailed("started again after an error of the user's")
    if is_main_process():
        context = replace(context, progress=_WrittenProgress(context.work / _PROGRESS_NAME))
    try:
        train(context)
    except PipelineError as error:
        failure.write_text(json.dumps([type(error).__name__, str(error)]))
        raise


class _WrittenProgress:
    """Writes progress into a file, at most once in the time after which it is looked at."""

    def __init__(self, path: Path):
        self._path = path
        self._last = 0.0

    def __call__(self, done: int, total: int, status: str) -> None:
        now = time.monotonic()
        if done >= total or now - self._last >= _SECONDS_BETWEEN_LOOKS:
            self._last = now
            unfinished = self._path.with_suffix(".tmp")
            unfinished.write_text(json.dumps([done, total, status]))
            unfinished.replace(self._path)


@contextmanager
def _followed(context: StepContext[OptionsT]) -> Iterator[None]:
    """Report what is in that file, and what it holds at the end."""
    finished, path = threading.Event(), context.work / _PROGRESS_NAME

    def follow() -> None:
        reported = ""
        while True:
            is_last = finished.wait(_SECONDS_BETWEEN_LOOKS)
            said = path.read_text() if path.exists() else ""
            if said != reported:
                reported = said
                context.progress(*json.loads(said))
            if is_last:
                return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()
