"""A training in several processes: their progress and what is wrong become the step's."""

import json
import logging
import os
import shlex
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from data import errors
from data.artifacts.bucket import forget_bucket
from data.artifacts.files import durable_file
from data.artifacts.store import ArtifactStore
from data.errors import ArtifactMissing, PipelineError, StepFailed
from data.orphans import end_with_parent
from data.progress import SECONDS_BETWEEN_REPORTS, Progress, Seldom, silent
from models.detector.options import DetectorTraining
from models.generator.options import GeneratorConfig
from models.processes import Hosts, is_main_process, run_distributed
from tasks.execution.child import log_plainly, users_errors
from tasks.execution.context import StepContext
from tasks.execution.versions import require_versions, versions

_FAILURE_NAME = "failure.json"
_PROGRESS_NAME = "progress.json"
"""In the work folder: what the processes say to the one that started them."""

_SHARED_NAME = "context.json"
"""In the work folder: what other hosts need to know of the step."""

_STEP, _PLAN, _VERSIONS = "step", "plan", "versions"
"""In that file."""

TrainingT = TypeVar("TrainingT", GeneratorConfig, DetectorTraining)

Train = Callable[..., None]
"""Of a step's context and a plan: trains with the others, in a process of its own."""

logger = logging.getLogger(__name__)


def train_in_processes(
    context: StepContext[TrainingT],
    train: Train,
    kind: str,
    num_steps: int,
    plan: Any = None,
) -> None:
    """Have several processes, on other hosts too, train together, and report what the first one does.

    What is wrong for the user ends them all; where one dies all go on from their newest checkpoint.

    Args:
        train: called by each process; importable by name.
        kind: module by which other hosts take part, when it is run with the work folder.
        num_steps: of the training.
        plan: what the processes need beside the step's context, plain JSON.

    Raises:
        PipelineError: by `train`, or as of `run_distributed`.
    """
    train_here = partial(_train_here, context, partial(train, plan=plan), is_first_host=True)
    endpoint = context.options.rdzv_endpoint
    if not endpoint:
        train_here()
        return

    def waits(whom: str) -> None:
        context.progress(0, num_steps, f"waits for rdzv_endpoint {endpoint} of {whom}")

    with ArtifactStore(context.root).lock_in_turn("rdzv", endpoint, waits):
        _invite(context, kind, num_steps, plan)
        train_here()


def join(work: Path, of: type[StepContext[TrainingT]], train: Train) -> None:
    """Let this host take part in a training that another one runs, until it is done.

    Args:
        work: the step's work folder, which both see under the same path.
        train: as that host has it.

    Raises:
        ArtifactMissing: no training waits for hosts there.
        ServiceUnavailable: the hosts do not find each other, or have other versions of the code.
        StepFailed: a process died once more.
    """
    shared = work / _SHARED_NAME
    if not shared.is_file():
        raise ArtifactMissing(
            f"{work}: no training waits there for other hosts. Its log says when it does"
        )
    facts = json.loads(shared.read_text())
    require_versions(facts[_VERSIONS], "this host")
    step = TypeAdapter(of).validate_python(facts[_STEP] | {"progress": silent})
    _train_here(step, partial(train, plan=facts[_PLAN]), is_first_host=False)


def join_by_command(of: type[StepContext[TrainingT]], train: Train) -> None:
    """`join` the training whose work folder is the command's argument."""
    log_plainly()
    forget_bucket()
    try:
        join(Path(sys.argv[1]), of, train)
    except PipelineError as error:
        sys.exit(str(error))


def _invite(context: StepContext[TrainingT], kind: str, num_steps: int, plan: Any) -> None:
    """Say how other hosts take part, to people and in the work folder."""
    step = TypeAdapter(StepContext[Any]).dump_python(context, mode="json", exclude={"progress"})
    facts = {_STEP: step, _PLAN: plan, _VERSIONS: versions()}
    with durable_file(context.work / _SHARED_NAME) as file:
        file.write(json.dumps(facts).encode())
    command = shlex.join(["python", "-P", "-m", kind, str(context.work)])
    logger.info("on each of %d other hosts: %s", context.options.num_nodes - 1, command)
    context.progress(0, num_steps, f"waiting for hosts: {command}")


def _train_here(
    context: StepContext[TrainingT],
    train: Callable[[StepContext[TrainingT]], None],
    *,
    is_first_host: bool,
) -> None:
    """Start this host's processes, and wait for them."""
    options, hosts = context.options, None
    if options.rdzv_endpoint:
        hosts = Hosts(options.num_nodes, options.rdzv_endpoint, context.key, is_first_host)
    failure, reported = context.work / _FAILURE_NAME, context.work / _PROGRESS_NAME
    if is_first_host:  # without which the others' processes do not begin
        failure.unlink(missing_ok=True)
        reported.unlink(missing_ok=True)
    quiet = replace(context, progress=silent)
    try:
        with _passed_on(reported, context.progress) if is_first_host else nullcontext():
            run_distributed(
                _train_in_process, quiet, train, num_processes=options.num_gpus, hosts=hosts
            )
    except PipelineError as error:
        if failure.exists():
            name, message = json.loads(failure.read_text())
            raise getattr(errors, name)(message) from error
        raise


def _train_in_process(
    context: StepContext[TrainingT], train: Callable[[StepContext[TrainingT]], None]
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
