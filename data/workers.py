"""Work over many items in processes: in order, with little waiting in memory."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any, Generic, Self, TypeVar

from data.orphans import end_with_parent

Shared = TypeVar("Shared")
Item = TypeVar("Item")
Result = TypeVar("Result")

_shared: Any = None
"""What the parent shares with this worker process."""


def _begin(value: Any) -> None:
    global _shared  # noqa: PLW0603  # the only way to hand a large object over once a process
    end_with_parent()
    _shared = value


def _call(function: Callable[[Any, Any], Any], item: Any) -> Any:
    return function(_shared, item)


class Workers(Generic[Shared]):
    """Processes that all hold one object; with `num_workers` 1 all work is done in this process."""

    def __init__(self, shared: Shared, num_workers: int = 1):
        self._given = shared
        self._num_workers = num_workers
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        if self._num_workers > 1:
            self._pool = ProcessPoolExecutor(
                self._num_workers, initializer=_begin, initargs=(self._given,)
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def map(
        self, function: Callable[[Shared, Item], Result], items: Iterable[Item]
    ) -> Iterator[Result]:
        """Yield `function(shared, item)` in the order of the items, few of them ahead."""
        if self._pool is None:
            yield from (function(self._given, item) for item in items)
            return
        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(self._pool.submit(_call, function, item))
            if len(waiting) > 2 * self._num_workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
