"""A stage's own process: `python -m tasks.child SPEC`, started by `tasks.execution`.

Speaks JSON lines on its standard output: `{"progress": [done, total, status]}`, and at the end
`{"summary": …, "device": …}` or `{"error": class name, "message": …}`. Everything that libraries print
goes to standard error, which the parent sends to a log file.
"""

import importlib
import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from filelock import FileLock
from pydantic import BaseModel

from data.errors import PipelineError
from data.store import storage_errors
from tasks.context import StepContext
from tasks.orphans import end_with_parent
from tasks.stages import STAGES

_MIN_SECONDS_BETWEEN_REPORTS = 1.0


class StepSpec(BaseModel):
    """What the child is to do; the paths are absolute."""

    stage: str
    key: str
    config: dict[str, Any]
    inputs: dict[str, Path]
    out: Path
    work: Path
    root: Path
    num_workers: int


class _Reporter:
    """Sends progress, at most once a second, the last report of a count always."""

    def __init__(self, channel: TextIO):
        self._channel = channel
        self._last = 0.0

    def __call__(self, done: int, total: int, status: str) -> None:
        now = time.monotonic()
        if done >= total or now - self._last >= _MIN_SECONDS_BETWEEN_REPORTS:
            self._last = now
            self.send({"progress": [done, total, status]})

    def send(self, message: dict[str, Any]) -> None:
        """Write one line."""
        self._channel.write(json.dumps(message) + "\n")
        self._channel.flush()


def _private_stdout() -> TextIO:
    """Keep the real standard output for messages and point the public one at standard error."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return channel


def main(spec_path: str) -> int:
    """Run one step; 0 on success, 1 if a user's error was reported."""
    end_with_parent()
    reporter = _Reporter(_private_stdout())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    spec = StepSpec.model_validate_json(Path(spec_path).read_text())
    stage = STAGES[spec.stage]
    context = StepContext(
        config=stage.config.model_validate(spec.config),
        inputs=spec.inputs,
        out=spec.out,
        work=spec.work,
        key=spec.key,
        root=spec.root,
        num_workers=spec.num_workers,
        progress=reporter,
    )
    try:
        with storage_errors(spec.root), FileLock(spec.work / "child.lock"):
            spec.out.mkdir(exist_ok=True)
            summary = importlib.import_module(stage.step).run(context)
    except PipelineError as error:
        reporter.send({"error": type(error).__name__, "message": str(error)})
        return 1
    reporter.send({"summary": summary, "device": _device()})
    return 0


def _device() -> str:
    """The device that models ran on; `cpu` where no torch was needed."""
    torch = sys.modules.get("torch")
    return "cuda" if torch is not None and torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
