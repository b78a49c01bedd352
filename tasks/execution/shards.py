"""Work on items that each stand for themselves, cut into shards; a finished shard is never made again.

How items are cut, and so which of them share a batch, follows from them and the shards' size alone; a shard
is a folder that appears when it is whole. So executors differ in nothing but speed.
"""

import errno
import logging
import shutil
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar
from uuid import uuid4

from data.artifacts.comparison import differences
from data.artifacts.digests import file_digest
from data.artifacts.files import durable_rename
from data.artifacts.options import ShardedOptions
from data.errors import PipelineError, StepFailed
from tasks.execution.child import is_out_of_memory
from tasks.execution.context import StepContext
from tasks.execution.executors import Executor, LocalExecutor, Prepare, Warned, Worker

logger = logging.getLogger(__name__)

_MAX_TRIES = 3
_PATIENCE = 60.0
"""Seconds in which workers begin where there is room for them."""

ItemT = TypeVar("ItemT")
OptionsT = TypeVar("OptionsT", bound=ShardedOptions)

Make = Callable[[Sequence[ItemT], Path], None]
"""Makes a shard of items: writes files into an empty folder, which follow from the items alone."""


@dataclass(frozen=True, slots=True)
class _Shard(Generic[ItemT]):
    """Some of the items, and the folder that they become."""

    items: Sequence[ItemT]
    folder: Path


def run_shards(
    context: StepContext[OptionsT],
    prepare: Callable[[], Make[ItemT]],
    items: Sequence[ItemT],
    size: int,
    *,
    name: Callable[[ItemT], object],
    unit: str,
    on_gpu: bool = True,
) -> list[Path]:
    """Make shards of items by the executor that the step's options name.

    A shard whose worker dies or fails is given to a new one, at most twice.

    Args:
        prepare: loads, once in each worker, what makes shards; picklable.
        size: of a shard, items; the last one has what is left.
        name: what tells an item from others.
        unit: what items are called.
        on_gpu: whether workers use GPUs where there are some.

    Returns:
        The shards' folders, in the order of the items.

    Raises:
        StepFailed: a shard failed thrice, or came out differently the second time.
        InvalidConfig: there are fewer GPUs than are asked for.
        PipelineError: whatever a worker reported.
    """
    folder = context.work / "shards"
    folder.mkdir(exist_ok=True)
    for left in folder.glob("*.tmp"):
        shutil.rmtree(left)
    shards = [
        _Shard(items[start : start + size], folder / f"{start:09d}")
        for start in range(0, len(items), size)
    ]
    missing = [shard for shard in shards if not shard.folder.exists()]
    done = len(items) - sum(len(shard.items) for shard in missing)
    address = context.options.execution.address
    connecting = f", connects to {address}" if missing and address else ""
    context.progress(done, len(items), f"{unit}{connecting}")
    if missing:
        with (
            _executor(context, len(missing), on_gpu=on_gpu) as executor,
            closing(_made(executor, partial(_ShardMaker, prepare), missing, name)) as made,
        ):
            for shard in made:
                done += len(shard.items) if shard else 0
                waiting = "" if shard else ", waiting for workers to find room and load"
                context.progress(done, len(items), f"{unit}{waiting}")
    return [shard.folder for shard in shards]


@contextmanager
def _executor(context: StepContext[OptionsT], most: int, *, on_gpu: bool) -> Iterator[Executor]:
    options = context.options.execution
    if options.executor == "local":
        yield LocalExecutor(options, most, context.num_workers, on_gpu=on_gpu)
        return
    from tasks.execution.ray_executor import ray_executor  # noqa: PLC0415  # optional

    with ray_executor(options, most, context.num_workers, on_gpu=on_gpu) as executor:
        yield executor


class _ShardMaker(Generic[ItemT]):
    """Makes shards, in a worker."""

    def __init__(self, prepare: Callable[[], Make[ItemT]]):
        self._make = prepare()

    def __call__(self, shard: _Shard[ItemT]) -> None:
        """Make a shard in a folder of its own, and give that the shard's name.

        Raises:
            StepFailed: there is a shard of that name already, and its files are others.
        """
        target = shard.folder
        own = target.with_name(f"{target.name}.{uuid4().hex}.tmp")
        own.mkdir()  # with the mode of all folders: another user of a group's store may go on from it
        self._make(shard.items, own)
        try:
            durable_rename(own, target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            if differing := differences(_digests(target), _digests(own)):
                raise StepFailed(
                    f"{target} was made twice, and {', '.join(differing)} came out with other bytes: "
                    "are the workers' machines or libraries different?"
                ) from error
            shutil.rmtree(own)


def _digests(folder: Path) -> dict[str, str]:
    return {path.name: file_digest(path) for path in folder.iterdir()}


def _made(
    executor: Executor,
    prepare: Prepare,
    missing: Sequence[_Shard[ItemT]],
    name: Callable[[ItemT], object],
) -> Generator[_Shard[ItemT] | None]:
    """Let workers make shards; yields each when it is there, and None as long as no worker begins.

    No worker is left at the end.
    """
    todo = deque(missing)
    tries: Counter[Path | None] = Counter()
    workers: set[Worker] = set()
    idle: list[Worker] = []
    busy: dict[Warned, tuple[Worker, _Shard[ItemT] | None]] = {}
    told = set[str]()
    try:
        while todo or any(shard for _, shard in busy.values()):
            while len(workers) < executor.num_workers:
                worker = executor.new_worker(prepare)
                workers.add(worker)
                busy[worker.begin()] = worker, None
            while todo and idle:
                worker, shard = idle.pop(), todo.popleft()
                busy[worker.do(shard)] = worker, shard
            while not (settled := _settled(busy)):
                yield None
            for future in settled:
                worker, made = busy.pop(future)
                if error := future.exception():
                    _check(error, made, tries, name)
                    workers.discard(worker)
                    worker.end()
                else:
                    idle.append(worker)
                    tries[None] = 0
                    _tell(future.result(), told)
                if made and not made.folder.exists():
                    todo.append(made)
                elif made:
                    yield made
    finally:
        for worker in workers:
            worker.end()


def _tell(warned: Sequence[str], told: set[str]) -> None:
    """Warn of what this step has not been told yet."""
    for text in warned:
        if text not in told:
            told.add(text)
            logger.warning("%s", text)


def _settled(busy: Mapping[Warned, tuple[Worker, _Shard[ItemT] | None]]) -> set[Warned]:
    """Calls that have ended; none where for a while no worker has begun."""
    has_begun = any(shard for _, shard in busy.values())
    return wait(busy, None if has_begun else _PATIENCE, FIRST_COMPLETED).done


def _check(
    error: BaseException,
    shard: _Shard[ItemT] | None,
    tries: Counter[Path | None],
    name: Callable[[ItemT], object],
) -> None:
    """Raise what another try would not mend, and what two more did not.

    Args:
        shard: that failed; None: the worker did before it had one.
    """
    of_system = isinstance(error, OSError) and error.errno is not None  # Pillow's have no number
    lasts = of_system and not _may_pass(error)
    if isinstance(error, PipelineError) or lasts or is_out_of_memory(error):
        raise error
    what = shard.folder if shard else None
    tries[what] += 1
    logger.warning("%s: try %d of %d", what or "a worker", tries[what], _MAX_TRIES, exc_info=error)
    if tries[what] < _MAX_TRIES:
        return
    if of_system:
        raise error
    if shard is None:
        raise StepFailed(f"{_MAX_TRIES} workers failed before their first images: {error!r}")
    names = ", ".join(str(name(item)) for item in shard.items)
    why = "the death of its worker" if isinstance(error, BrokenExecutor) else repr(error)
    raise StepFailed(
        f"a shard failed {_MAX_TRIES} times, at last with {why}; one of its images may be what the model "
        f"cannot take: {names}"
    )


def _may_pass(error: BaseException) -> bool:
    """Whether it is of a disk or a network that may work at the next try; not so a full or read-only disk."""
    of_disk = isinstance(error, OSError) and error.errno in (errno.EIO, errno.ESTALE)
    return of_disk or isinstance(error, ConnectionError | TimeoutError)
