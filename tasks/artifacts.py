"""What the Prefect UI shows of a stage: the cached artifact as a task, its card, its numbers."""

import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast
from uuid import UUID

from prefect import get_run_logger, task
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.states import Completed, Failed
from pydantic import BaseModel
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from data.errors import PipelineError
from data.store import ArtifactStore, Manifest, StageIdentity
from tasks.cards import CARD_NAME, format_value
from tasks.execution import obtain

_SECONDS_BETWEEN_LINES = 15.0

_bars = Progress(
    TextColumn("{task.description:>18}"),
    BarColumn(),
    TextColumn("{task.completed}/{task.total}"),
    TimeRemainingColumn(),
    TextColumn("{task.fields[status]}"),
)
"""All stages of this process share one set of bars on the terminal."""


class StageProgress:
    """Shows a stage's progress in the UI and on the terminal, or as plain lines elsewhere."""

    def __init__(self, stage: str):
        self._stage = stage
        self._artifact: UUID | None = None
        self._bar: TaskID | None = None
        self._last_line = 0.0

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            _bars.start()
            self._bar = _bars.add_task(self._stage, total=None, status="starting")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            _bars.stop_task(self._bar)
            if all(item.stop_time is not None for item in _bars.tasks):
                _bars.stop()

    def __call__(self, done: int, total: int, status: str) -> None:
        """Show units done of units in total and a short status."""
        percent = 100 * done / max(total, 1)
        if self._artifact is None:
            created = create_progress_artifact(
                percent, key=f"{self._stage}-progress", description=status
            )
            self._artifact = cast("UUID", created)  # a coroutine only where called from one
        else:
            update_progress_artifact(self._artifact, percent, description=status)
        if self._bar is not None:
            _bars.update(self._bar, completed=done, total=total, status=status)
        elif done >= total or time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            get_run_logger().info("%s: %d/%d %s", self._stage, done, total, status)


@task(name="obtain-artifact", task_run_name="{identity.stage}", persist_result=False)
def obtain_artifact(
    root: Path, identity: StageIdentity, config: BaseModel, num_workers: int
) -> Any:
    """Get a stage's artifact, as a Prefect state that holds its manifest.

    The state is named `Cached` if it was there. An error that the user can mend becomes a failed state
    with its message, and no traceback in the log.
    """
    with StageProgress(identity.stage) as progress:
        try:
            manifest, hit = obtain(
                ArtifactStore(root), identity, config, num_workers=num_workers, progress=progress
            )
        except PipelineError as error:
            return Failed(message=str(error), data=error)
    return Completed(name="Cached" if hit else "Completed", data=manifest)


@task(name="show-artifact", persist_result=False)
def show_artifact(root: Path, manifest: Manifest) -> None:
    """Publish an artifact's card and its numbers in the UI, and mark it as the latest."""
    store = ArtifactStore(root)
    store.mark_latest(manifest)
    folder = store.path(manifest.stage, manifest.key)
    card = folder / CARD_NAME
    create_markdown_artifact(card.read_text(), key=manifest.stage, description=str(folder))
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
    create_table_artifact(rows, key=f"{manifest.stage}-facts", description=manifest.key)
