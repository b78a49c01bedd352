"""A training in several processes: their progress and what is wrong become the step's."""

import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from data import errors
from data.artifacts.options import Options
from data.errors import PipelineError, StepFailed
from data.orphans import end_with_parent
from data.progress import SECONDS_BETWEEN_REPORTS, Progress, Seldom, silent
from models.processes import Hosts, is_main_process, run_distributed
from tasks.execution.child import users_errors
from tasks.execution.context import StepContext

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
    failure, reported = context.work / _FAILURE_NAME, context.work / _PROGRESS_NAME
    is_first_host = hosts is None or hosts.is_first
    if is_first_host:  # without which the others' processes do not begin
        failure.unlink(missing_ok=True)
        reported.unlink(missing_ok=True)
    quiet = replace(context, progress=silent)
    try:
        with _passed_on(reported, context.progress) if is_first_host else nullcontext():
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
        reported = context.work / _PROGRESS_NAME
        context = replace(context, progress=Seldom(lambda *report: _write(reported, report)))
    try:
        with users_errors(context.root, context.options):
            train(context)
    except PipelineError as error:
        _write(failure, (type(error).__name__, str(error)))
        raise


def _write(path: Path, content: Sequence[Any]) -> None:
    """Write a file of which no other process sees a part."""
    unfinished = path.with_suffix(f".{os.environ['RANK']}")
    unfinished.write_text(json.dumps(content))
    unfinished.replace(path)


@contextmanager
def _passed_on(path: Path, progress: Progress) -> Iterator[None]:
    """Report what is in a file, and what it holds at the end."""
    finished = threading.Event()

    def follow() -> None:
        reported = ""
        while True:
            is_last = finished.wait(SECONDS_BETWEEN_REPORTS)
            said = path.read_text() if path.exists() else ""
            if said != reported:
                reported = said
                progress(*json.loads(said))
            if is_last:
                return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()
