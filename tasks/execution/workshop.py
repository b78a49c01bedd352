"""Getting steps' artifacts: from the store if they are there and intact, else from processes.

Modules that are slow to import (a detector's takes seconds, so does the generator's) are imported once by a
fork server, from which the steps' processes are forked. Beside a GPU too, unless one of those modules used it
when it was imported: CUDA does not survive a fork.
"""

import errno
import logging
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from functools import cached_property
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from filelock import Timeout

from data import errors
from data.artifacts.digests import DigestMemory
from data.artifacts.files import storage_errors
from data.artifacts.manifest import LOG_NAME, Manifest
from data.artifacts.records import Record
from data.artifacts.remote import Remote
from data.artifacts.store import ArtifactStore
from data.errors import (
    ArtifactMissing,
    InvalidConfig,
    PipelineError,
    RemoteConflict,
    RemoteDamaged,
    ServiceUnavailable,
    StepFailed,
)
from data.progress import Progress
from models.precision import visible_gpus
from tasks.execution.child import StepSpec, run_step, tell_gpu
from tasks.execution.graph import Graph, Step
from tasks.execution.machine import Machine, Part, available_cores
from tasks.execution.memory import PeakMemory
from tasks.execution.plan import input_missing
from tasks.execution.starting import gpu_looked_for_without_cuda, interrupts_blocked, without_main
from tasks.execution.versions import environment

logger = logging.getLogger(__name__)

_LOG_LINES_SHOWN = 12
_SECONDS_TO_END = 20.0
_SECONDS_WITHOUT_REMOTE = 60.0
"""A remote that does not answer takes as long to say so."""

_LITTLE_SPACE = 16_000_000
"""Bytes free under which a step's end is put down to a full disk: libraries hide the cause."""

_P = ParamSpec("_P")
_T = TypeVar("_T")

_start_lock = threading.Lock()
_remote_lock = threading.Lock()


class Workshop:
    """Obtains the artifacts of a graph; steps may be asked for side by side.

    Args:
        store: where the artifacts are.
        graph: of the steps.
        num_cores: that the steps share; None for all.
        gpus: names of those that they share; None for all that this process sees.
        remote: the store's mirror, which fills it and gets what is made; one that fails is done without.
    """

    def __init__(
        self,
        store: ArtifactStore,
        graph: Graph,
        num_cores: int | None = None,
        gpus: Sequence[str] | None = None,
        remote: Remote | None = None,
    ):
        self.store = store
        self.graph = graph
        self._machine = Machine(
            num_cores or available_cores(), visible_gpus() if gpus is None else gpus
        )
        self._remote = remote
        self._remote_rests_until = 0.0
        self._unshared: Record | None = None
        self._processes: set[BaseProcess] = set()
        self._stopped = threading.Event()

    def prepare(self, steps: Iterable[Step]) -> None:
        """Begin to import what those steps need that have no artifact yet; returns at once."""
        missing = [s for s in steps if not self.store.has(s.kind.name, s.identity.key)]
        modules = {step.kind.module for step in missing if step.kind.preload}
        if modules:
            from multiprocessing import forkserver  # noqa: PLC0415  # starts nothing by itself

            # The server is not told this process' path: it would import a `tasks.py` of the working folder.
            os.environ["PYTHONSAFEPATH"] = "1"
            multiprocessing.set_forkserver_preload(sorted(modules))
            with _start_lock, gpu_looked_for_without_cuda(), interrupts_blocked():
                forkserver.ensure_running()

    def obtain(
        self, step: Step, progress: Progress, warn: Callable[[str], None] = logger.warning
    ) -> tuple[Manifest, bool]:
        """Return a step's artifact and whether it was there already, or on the mirror, or made meanwhile.

        Args:
            warn: called with what a user should know while the step runs.

        Raises:
            ArtifactMissing: an input's artifact is absent or damaged.
            StepFailed: the step's process died, or the run was stopped.
            PipelineError: whatever the step reported.
        """
        identity, hit = step.identity, True
        manifest = self.store.lookup(identity.kind, identity.key)
        if manifest is None:
            with storage_errors(self.store.root), self._locked(step, progress):
                manifest = self._found(step, progress)
                if manifest is None:
                    hit = False
                    inputs = {name: self._input(step, name, progress) for name in step.inputs}
                    with self._part_for(step, progress) as part:
                        manifest = self._make(step, inputs, part, progress, warn)
            if not hit:
                self._on_mirror(self._push, manifest, self._until_stopped(progress))
        step.options.note_places(self.store.root / identity.reference)
        return manifest, hit

    def share(self, record: Record) -> None:
        """Put the run's record on the mirror, where there is one; if not now, then before what is made."""
        self._unshared = record
        self.share_late()

    def share_late(self) -> None:
        """Put the run's record on the mirror, if that has not been done."""
        self._on_mirror(self._push_record)

    def stop(self) -> None:
        """End all processes, and start no more."""
        self._stopped.set()
        _end(list(self._processes))

    @contextmanager
    def _locked(self, step: Step, progress: Progress) -> Iterator[None]:
        """Keep other runs from making the same; say for which one it waits."""
        lock = self.store.lock_in_turn(
            step.identity.kind,
            step.identity.key,
            lambda whom: progress(0, 1, f"waits for {whom}"),
            self._stopped.is_set,
        )
        with ExitStack() as held:
            try:
                held.enter_context(lock)
            except Timeout as error:
                raise StepFailed(f"{step.name!r}: the run was stopped") from error
            yield

    def _found(self, step: Step, progress: Progress) -> Manifest | None:
        """A step's artifact from the store, or else from the mirror; the caller holds its lock."""
        kind, key = step.identity.kind, step.identity.key
        there = self.store.lookup(kind, key)
        report = self._until_stopped(progress)
        return there or self._on_mirror(Remote.pull, self.store, kind, key, report)

    def _push(self, remote: Remote, manifest: Manifest, progress: Progress) -> None:
        """Push what was made; after the record, without which the mirror's `gc` takes it."""
        self._push_record(remote)
        remote.push(self.store, manifest, progress)

    def _push_record(self, remote: Remote) -> None:
        if record := self._unshared:
            remote.push_record(self.store.root, record.id)
            self._unshared = None

    def _until_stopped(self, progress: Progress) -> Progress:
        """Progress of a transfer, which has no process that could be ended."""

        def report(done: int, total: int, status: str) -> None:
            if self._stopped.is_set():
                raise StepFailed("the run was stopped; run again to go on")
            progress(done, total, status)

        return report

    def _on_mirror(
        self, do: Callable[Concatenate[Remote, _P], _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> _T | None:
        """What the mirror gives; None with a warning where that fails. If it does not answer it rests."""
        remote = self._remote
        if remote is None or time.monotonic() < self._remote_rests_until:
            return None
        try:
            return do(remote, *args, **kwargs)
        except (ArtifactMissing, RemoteConflict, RemoteDamaged) as error:
            logger.warning("%s", error)
        except ServiceUnavailable as error:
            now = time.monotonic()
            with _remote_lock:
                is_first = self._remote_rests_until < now
                self._remote_rests_until = now + _SECONDS_WITHOUT_REMOTE
            if is_first:
                logger.warning(
                    "the run goes on without its remote and asks it again in a minute, `detdiffusion push` "
                    "sends later what it makes until then: %s",
                    error,
                )
        return None

    def _is_forked(self, step: Step) -> bool:
        return step.kind.preload and (not self._machine.gpus or self._forks_use_gpus)

    @cached_property
    def _forks_use_gpus(self) -> bool:
        """Whether what the fork server has imported left the GPU alone."""
        context = multiprocessing.get_context("forkserver")
        receiving, sending = context.Pipe(duplex=False)
        process = context.Process(target=tell_gpu, args=(sending,))
        with _start_lock, without_main():
            process.start()
        sending.close()
        try:
            return bool(receiving.recv())
        except EOFError:  # it died: so would a step
            return False
        finally:
            process.join()
            receiving.close()

    def _part_for(self, step: Step, progress: Progress) -> AbstractContextManager[Part]:
        """Its part of the machine, in the order of the graph.

        What loads models has GPUs to itself, and as large a share of the cores as of the GPUs.
        """
        place = list(self.graph.steps).index(step.identity.reference)
        there = len(self._machine.gpus)
        if not step.kind.preload or not there:
            return self._machine.take(step.kind.share, place)
        num_gpus = min(step.options.num_gpus, there)
        report = self._until_stopped(progress)
        return self._machine.take(
            num_gpus / there, place, num_gpus, lambda who: report(0, 1, f"waits for a GPU of {who}")
        )

    def _input(self, step: Step, name: str, progress: Progress) -> Path:
        source = step.inputs[name]
        folder = self.store.root / source.identity.reference
        there = self.store.is_there(source.identity.kind, source.identity.key)
        if not there and self._remote:
            with self._locked(source, progress):
                there = self._found(source, progress) is not None
        if not there:
            raise input_missing(step, source)
        source.options.note_places(folder)
        return folder

    def _make(
        self,
        step: Step,
        inputs: dict[str, Path],
        part: Part,
        progress: Progress,
        warn: Callable[[str], None],
    ) -> Manifest:
        identity = step.identity
        spec = StepSpec(
            module=step.kind.module,
            key=identity.key,
            options=step.options,
            foreign=identity.foreign,
            inputs=inputs,
            work=self.store.work(identity.kind, identity.key),
            root=self.store.root,
            num_workers=part.cores,
            visible_gpus=os.environ.get("CUDA_VISIBLE_DEVICES")
            if part.gpus in {(), self._machine.gpus}
            else ",".join(part.gpus),
        )
        started = time.monotonic()
        self._require_unchanged(step)
        result, peak = self._run(step, spec, progress, warn)
        try:
            self._require_unchanged(step)
        except InvalidConfig:
            shutil.rmtree(spec.work)
            raise
        return self.store.publish(
            identity,
            spec.work / "out",
            summary=result["summary"],
            environment=environment()
            | {"device": result["device"], "gpus": list(part.gpus), "cores": part.cores},
            seconds=time.monotonic() - started,
            peak_memory_bytes=peak,
            created_at=datetime.now(UTC).isoformat(),
        )

    def _require_unchanged(self, step: Step) -> None:
        """Refuse to file under a digest what may be made from other content.

        What is no longer there is taken for unchanged, and a commit of the hub never changes.

        Raises:
            InvalidConfig: a file that an option names was changed since the run began.
        """
        known, now = step.identity.foreign, dict[str, str]()
        if known and not any("@" in digest for digest in known.values()):
            with suppress(PipelineError, OSError), DigestMemory(self.store.root) as digests:
                now = step.options.foreign(digests)
        changed = [name for name, digest in now.items() if known.get(name) != digest]
        if changed:
            raise InvalidConfig(
                f"{step.name!r}: what {', '.join(changed)} names was changed since the run began: run again"
            )

    def _run(
        self, step: Step, spec: StepSpec, progress: Progress, warn: Callable[[str], None]
    ) -> tuple[dict[str, Any], int]:
        """Let a process run the step; returns what it reports, and its memory at the peak, bytes."""
        start = "forkserver" if self._is_forked(step) else "spawn"
        context = cast("ForkServerContext", multiprocessing.get_context(start))
        receiving, sending = context.Pipe()  # both ways: each end sees the other one closed
        process = context.Process(target=run_step, args=(spec, sending), name=step.name)
        with _start_lock, without_main():
            if self._stopped.is_set():
                raise StepFailed(f"{step.name!r}: the run was stopped")
            process.start()
        sending.close()
        self._processes.add(process)
        if self._stopped.is_set():  # meanwhile
            _end([process])
        report: dict[str, Any] = {}
        try:
            with PeakMemory(process.pid or 0) as peak:
                while True:
                    try:
                        said = receiving.recv()
                    except EOFError:
                        break
                    match said:
                        case dict():
                            report = said
                        case str():
                            warn(said)
                        case _:
                            progress(*said)
                process.join()
                _kill_group(process)  # what it left behind
        except BaseException:
            _end([process])
            raise
        finally:
            self._processes.discard(process)
            receiving.close()
        return self._result(step, spec, report, process.exitcode), peak.bytes

    def _result(
        self, step: Step, spec: StepSpec, report: dict[str, Any], status: int | None
    ) -> dict[str, Any]:
        if "error" in report:
            raise _user_error(report["error"], f"{report['message']} (log: {spec.work / LOG_NAME})")
        if "summary" in report:
            return report
        if self._stopped.is_set():
            raise StepFailed(f"{step.name!r}: the run was stopped; run again to go on")
        if shutil.disk_usage(spec.root).free < _LITTLE_SPACE:
            raise OSError(errno.ENOSPC, "No space left on device")
        log = spec.work / LOG_NAME
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        tail = "\n".join(lines[-_LOG_LINES_SHOWN:])
        raise StepFailed(
            f"{step.name!r} ended with exit status {status}; run again to go on from its last checkpoint. "
            f"See the end of {log}:\n{tail}"
        )


def _end(processes: Sequence[BaseProcess]) -> None:
    """Ask processes to end; kill those that do not in time, with all that they started."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + _SECONDS_TO_END
    for process in processes:
        if not wait([process.sentinel], max(deadline - time.monotonic(), 0)):
            process.kill()
            _kill_group(process)


def _kill_group(process: BaseProcess) -> None:
    with suppress(
        ProcessLookupError
    ):  # nobody is left, or it has not come to have a group of its own
        os.killpg(cast("int", process.pid), signal.SIGKILL)


def _user_error(name: str, message: str) -> PipelineError:
    kind = getattr(errors, name, StepFailed)
    return kind(message)
