"""What the Prefect UI shows of a step: a task run, its progress, its artifact's card and numbers."""

import logging
import re
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, Self, TypeVar, cast
from uuid import UUID

from prefect import State, get_run_logger, task
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Completed, Failed
from rich import progress as rich_progress
from rich.console import Console
from rich.table import Column

from data.artifacts.identity import short_name
from data.artifacts.manifest import Manifest
from data.errors import PipelineError
from tasks.execution.context import WARNINGS
from tasks.execution.graph import Graph, Step
from tasks.execution.workshop import Workshop
from tasks.pages.cards import CARD_NAME, markdown_table
from tasks.pages.numbers import format_value

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 15.0
_SECONDS_WITHOUT_SERVER = 60.0
_NUM_RETRIES = 2
"""Of what is shown: 6 s of waiting for the server, where the client's default is a minute."""

_P = ParamSpec("_P")
_T = TypeVar("_T")

_BESIDE_NAME = 45
"""Columns of a terminal: count, time, and status, which would be cut off beside a longer name."""

_RESULT_STYLES = (
    "classDef hit fill:#e8e8e8,stroke:#888,color:#222",
    "classDef made fill:#cfe8cf,stroke:#2a7a2a,color:#222",
    "classDef failed fill:#f4c7c3,stroke:#b3261e,color:#222",
    "classDef left stroke-dasharray:4",
)
"""Of the boxes in a drawing of a run."""

_NAME_WIDTH = 26
"""Of a step's name beside its bar, at least."""

_bars = rich_progress.Progress(
    rich_progress.TextColumn(f"{{task.description:>{_NAME_WIDTH}}}"),
    rich_progress.BarColumn(),
    rich_progress.TextColumn("{task.completed}/{task.total}"),
    rich_progress.TimeRemainingColumn(table_column=Column(no_wrap=True)),
    rich_progress.TextColumn("{task.fields[status]}"),
    console=Console(stderr=True),
)
"""All steps of this process share one set of bars on the terminal."""


def _shortened(name: str, width: int) -> str:
    """A step's name without its middle, where it is too long.

    >>> _shortened("generator: validate real+hard seed 0", 20), _shortened("measure", 20)
    ('generator:…rd seed 0', 'measure')
    """
    left = width // 2
    return name if len(name) <= width else f"{name[:left]}…{name[left + 1 - width :]}"


def artifact_key(name: str) -> str:
    """The name of a step as Prefect wants the key of an artifact.

    >>> artifact_key("retrain real+hard seed 2")
    'retrain-real-hard-seed-2'
    """
    return re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")


class _Server:
    """Prefect's, as that which shows things: one that is gone neither ends a step nor holds it up."""

    def __init__(self) -> None:
        self._is_gone = False
        self._left_alone_until = 0.0

    def show(self, publish: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T | None:
        """What publishing gives; None where the server does not answer, which is then left alone a while."""
        if time.monotonic() < self._left_alone_until:
            return None
        try:
            with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: _NUM_RETRIES}):
                shown = publish(*args, **kwargs)
        except Exception as error:  # noqa: BLE001  # the client raises anything while a server restarts
            if not self._is_gone:
                logger.warning("the run goes on, but the Prefect UI does not show it: %s", error)
            self._is_gone = True
            self._left_alone_until = time.monotonic() + _SECONDS_WITHOUT_SERVER
            return None
        self._is_gone = False
        return shown


_server = _Server()


class StepProgress:
    """Shows a step's progress in the UI and on the terminal, or as plain lines elsewhere."""

    def __init__(self, name: str):
        self._name = name
        self._artifact: UUID | None = None
        self._bar: rich_progress.TaskID | None = None
        self._last_line = 0.0
        self._said: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            _bars.stop_task(self._bar)
            if all(item.stop_time is not None for item in _bars.tasks):
                _bars.stop()

    def __call__(self, done: int, total: int, status: str) -> None:
        """Show units done of units in total and a short status."""
        self._show_in_ui(100 * done / max(total, 1), status)
        if sys.stderr.isatty():
            if self._bar is None:
                _bars.start()
                name = _shortened(self._name, max(_bars.console.width - _BESIDE_NAME, _NAME_WIDTH))
                self._bar = _bars.add_task(name, total=total, status=status)
            _bars.update(self._bar, completed=done, total=total, status=status)
        elif done >= total or time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            get_run_logger().info("%s: %d/%d %s", self._name, done, total, status)

    def fail(self, reason: str) -> None:
        """Say in one line above a terminal's bars that the step failed; elsewhere Prefect's log does."""
        if self._bar is not None:
            _bars.update(self._bar, status="failed")
        first, _, _ = reason.partition("\n")
        self._say(f"error: {self._name}: {first.rstrip(':')}", "red")

    def warn(self, text: str) -> None:
        """Say once what the user should know of a step, in Prefect's log and above a terminal's bars."""
        if any(said == text or said.endswith(f": {text}") for said in self._said):
            return
        self._said.append(text)
        get_run_logger().warning("%s: %s", self._name, text)
        self._say(f"warning: {self._name}: {text}", "yellow")

    def _say(self, line: str, style: str) -> None:
        if sys.stderr.isatty():
            _bars.console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)

    def _show_in_ui(self, percent: float, status: str) -> None:
        if self._artifact is None:
            key = f"{artifact_key(self._name)}-progress"
            created = _server.show(create_progress_artifact, percent, key=key, description=status)
            self._artifact = cast("UUID | None", created)  # a coroutine only where called from one
        else:
            _server.show(update_progress_artifact, self._artifact, percent, description=status)


@task(
    name="obtain-artifact",
    task_run_name="{name}",
    persist_result=False,
    cache_policy=NO_CACHE,
)
def obtain_artifact(workshop: Workshop, name: str) -> Any:
    """Get the artifact of a step and show it; returns a Prefect state that holds its manifest.

    The state is named `Cached` if it was there. An error that the user can mend becomes a failed state
    with its message, and no traceback in the log.
    """
    step = workshop.graph.find(name)
    with StepProgress(name) as progress:
        try:
            manifest, hit = workshop.obtain(step, progress, progress.warn)
        except PipelineError as error:
            progress.fail(str(error))
            return Failed(message=str(error), data=error)
        except Exception as error:
            progress.fail(repr(error))
            raise
        for text in manifest.summary.get(WARNINGS, ()):
            progress.warn(text)
    _show(workshop, step, manifest)
    return Completed(name="Cached" if hit else "Completed", data=manifest)


def _show(workshop: Workshop, step: Step, manifest: Manifest) -> None:
    """Publish an artifact's card and its numbers in the UI."""
    folder = workshop.store.root / manifest.reference
    key = artifact_key(step.name)
    card = folder / CARD_NAME
    if card.is_file():
        text, short = card.read_text(), short_name(manifest.reference)  # more of it is cut off
        _server.show(create_markdown_artifact, text, key=key, description=short)
    facts = {
        "artifact": str(folder),
        "files": len(manifest.files),
        "seconds": round(manifest.seconds, 1),
        "peak memory, GB": round(manifest.peak_memory_bytes / 1e9, 2),
        "created": manifest.created_at,
    }
    rows = [{"name": name, "value": str(value)} for name, value in facts.items()]
    numbers = manifest.summary.get("results", manifest.summary.get("metrics", {}))
    rows += [{"name": name, "value": format_value(value)} for name, value in numbers.items()]
    _server.show(create_table_artifact, rows, key=f"{key}-facts", description=manifest.key)


def show_lineage(workshop: Workshop, states: Mapping[str, State[Any]]) -> None:
    """Publish in the UI what became of steps, as `lineage`, with links to their pages.

    Args:
        states: in which their tasks ended, by `kind/key`.
    """
    results = {reference: _result(state) for reference, state in states.items()}
    pages = (
        path for item in states for path in sorted((workshop.store.root / item).glob("*.html"))
    )
    links = [f"[{path}]({path.as_uri()})" for path in pages]
    text = "\n\n".join([*links, lineage(workshop.graph, results)])
    root = str(workshop.store.root)
    _server.show(create_markdown_artifact, text, key="lineage", description=root)


def _result(state: State[Any]) -> str:
    if state.is_completed():
        return "hit" if state.name == "Cached" else "made"
    return "failed" if state.is_failed() or state.is_crashed() else "left"


def lineage(graph: Graph, results: Mapping[str, str]) -> str:
    """Draw steps with what they are made from, by stage, as Markdown with Mermaid; and list them.

    Args:
        results: what became of them, each after its inputs, by `kind/key`: hit, made, failed, or left
            where an input failed.
    """
    numbers = {reference: number for number, reference in enumerate(results)}
    stages: dict[str, list[str]] = {}
    above: dict[str, set[str]] = {}  # no arrow goes where others lead
    arrows, rows = [], []
    for reference, number in numbers.items():
        step, result = graph.steps[reference], results[reference]
        name = step.name.replace('"', "#quot;")
        stages.setdefault(step.stages[0], []).append(f'  {number}["{name}"]:::{result}')
        sources = {source.identity.reference for source in step.inputs.values()} & above.keys()
        indirect = set[str]().union(*(above[item] for item in sources))
        above[reference] = sources | indirect
        arrows += [f"{numbers[item]} --> {number}" for item in sorted(sources - indirect)]
        rows.append({"step": ", ".join(step.names), "": result, "artifact": reference})
    groups = [
        line for stage, boxes in stages.items() for line in (f"subgraph {stage}", *boxes, "end")
    ]
    drawing = ["```mermaid", "flowchart LR", *groups, *arrows, *_RESULT_STYLES, "```"]
    return "\n".join([*drawing, "", markdown_table(rows)])
