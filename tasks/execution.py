"""Getting a stage's artifact: from the store if it is there and intact, else from a child process."""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
from pydantic import BaseModel

from data import errors
from data.errors import ArtifactMissing, PipelineError, StageFailed
from data.store import ArtifactStore, Manifest, StageIdentity, storage_errors
from tasks.child import StepSpec
from tasks.context import Progress
from tasks.stages import STAGES

_PACKAGES = ("torch", "diffusers", "transformers", "mmdet", "mmengine", "prefect")
_LOG_LINES_SHOWN = 12
_MEMORY_SAMPLING_SECONDS = 0.5
_LITTLE_SPACE = 16_000_000
"""Bytes free under which a stage's end is put down to a full disk: libraries hide the cause."""


def default_root() -> Path:
    """The artifact root: `DETDIFFUSION_HOME`, or `artifacts` in the working folder."""
    return Path(os.environ.get("DETDIFFUSION_HOME", "artifacts")).resolve()


def available_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def obtain(
    store: ArtifactStore,
    identity: StageIdentity,
    config: BaseModel,
    *,
    num_workers: int,
    progress: Progress,
) -> tuple[Manifest, bool]:
    """Return a stage's artifact and whether it was there already.

    Raises:
        ArtifactMissing: an input's artifact is absent or damaged.
        StageFailed: the stage's process died.
        PipelineError: whatever the stage reported.
    """
    with store.lock(identity.stage, identity.key):
        manifest = store.lookup(identity.stage, identity.key)
        if manifest:
            return manifest, True
        inputs = {
            name: _input_folder(store, identity, name) for name in STAGES[identity.stage].inputs
        }
        with storage_errors(store.root):
            return _make(store, identity, config, inputs, num_workers, progress), False


def _input_folder(store: ArtifactStore, identity: StageIdentity, name: str) -> Path:
    key = identity.inputs[name]
    if store.lookup(name, key) is None:
        raise ArtifactMissing(
            f"{identity.stage} needs the artifact {name}/{key}, which is missing or damaged: "
            f"run the stage {name} first, or end-to-end"
        )
    return store.path(name, key)


def _make(
    store: ArtifactStore,
    identity: StageIdentity,
    config: BaseModel,
    inputs: dict[str, Path],
    num_workers: int,
    progress: Progress,
) -> Manifest:
    work = store.work(identity.stage, identity.key)
    spec = StepSpec(
        stage=identity.stage,
        key=identity.key,
        config=config.model_dump(mode="json"),
        inputs=inputs,
        out=work / "out",
        work=work,
        root=store.root,
        num_workers=num_workers,
    )
    started = time.monotonic()
    with peak_memory() as peak:
        result = _run_child(spec, progress)
    return store.publish(
        identity,
        spec.out,
        summary=result["summary"],
        environment=_environment() | {"device": result["device"]},
        seconds=time.monotonic() - started,
        peak_memory_bytes=peak[0],
        created_at=datetime.now(UTC).isoformat(),
    )


def _run_child(spec: StepSpec, progress: Progress) -> dict[str, Any]:
    spec_path, log_path = spec.work / "spec.json", spec.work / "log.txt"
    spec_path.write_text(spec.model_dump_json())
    threads = {"OMP_NUM_THREADS": str(spec.num_workers)}
    last: dict[str, Any] = {}
    with (
        log_path.open("a") as log,
        subprocess.Popen(  # noqa: S603  # our own module
            [sys.executable, "-P", "-m", "tasks.child", str(spec_path)],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=os.environ | threads,
        ) as child,
    ):
        try:
            for line in child.stdout or ():
                last = json.loads(line)
                if "progress" in last:
                    progress(*last["progress"])
        except BaseException:
            child.terminate()
            raise
    if "error" in last:
        raise _user_error(last["error"], last["message"])
    if child.returncode != 0 or "summary" not in last:
        if shutil.disk_usage(spec.root).free < _LITTLE_SPACE:
            raise OSError(errno.ENOSPC, "No space left on device")
        tail = "\n".join(log_path.read_text(errors="replace").splitlines()[-_LOG_LINES_SHOWN:])
        raise StageFailed(
            f"stage {spec.stage} ended with exit status {child.returncode}; run again to go on from its "
            f"last checkpoint. The end of {log_path}:\n{tail}"
        )
    return last


def _user_error(name: str, message: str) -> PipelineError:
    kind = getattr(errors, name, StageFailed)
    return kind(message)


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """Sample the resident memory of this process and all its children; yields [bytes at peak]."""
    peak, done = [0], threading.Event()

    def sample() -> None:
        while not done.wait(_MEMORY_SAMPLING_SECONDS):
            peak[0] = max(peak[0], _resident_bytes())

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def _resident_bytes() -> int:
    me = psutil.Process()
    total = 0
    for process in (me, *me.children(recursive=True)):
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def _environment() -> dict[str, Any]:
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "python": sys.version.split()[0],
        "packages": {name: metadata.version(name) for name in _PACKAGES},
        "cores": available_cores(),
    }


def _git(*arguments: str) -> str | None:
    """Output of a git command in the project's checkout; None outside of one."""
    folder = Path(__file__).parent
    try:
        run = subprocess.run(  # noqa: S603  # fixed arguments
            ["git", *arguments],  # noqa: S607  # git is found on the user's PATH
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return run.stdout.strip()
