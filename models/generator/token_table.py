"""Training the text encoder's token table by touched rows only.

A location grid of 256 × 256 makes 65,536 rows, of which a batch uses a few hundred. With sparse
gradients neither the gradient nor Adam's moments nor the moving average of the other rows are gone
through in a step.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor

_SMALLEST_DECAY = 1e-30
"""A decay of 0 has no logarithm."""


def synchronized_gradient(
    gradient: Tensor, gather: Callable[[Tensor], Tensor], num_processes: int
) -> Tensor:
    """Average a sparse gradient over all processes.

    NCCL reduces no sparse tensors, so rows and values are gathered instead.

    Args:
        gather: concatenates the processes' tensors along the first dimension, shorter ones filled up
            with zeros.
    """
    rows, values = gradient._indices()[0], gradient._values() / num_processes  # noqa: SLF001
    if num_processes > 1:
        rows, values = gather(rows), gather(values)
    summed = torch.sparse_coo_tensor(rows[None], values, gradient.shape, check_invariants=False)
    return summed.coalesce()


class RowAverage:
    """Exponential moving average of a table's rows, up to date where rows were touched.

    An untouched row keeps its value w, so k steps move its average a to w + (a - w) Π decay: one
    product, made up for when the row is next touched or read.
    """

    def __init__(self, table: Float[Tensor, "rows width"]):
        self._table = table.detach()
        self._average = self._table.clone()
        self._log_decay = 0.0
        self._seen = torch.zeros(len(table), dtype=torch.float64, device=table.device)

    def catch_up(self, rows: Int[Tensor, " touched"]) -> None:
        """Bring rows up to date; to be called before they change."""
        self._average[rows] = self._current(
            self._table[rows], self._average[rows], self._seen[rows]
        )
        self._seen[rows] = self._log_decay

    def step(self, rows: Int[Tensor, " touched"], decay: float) -> None:
        """Count one step in which only these rows, brought up to date before, have changed."""
        self._log_decay += math.log(max(decay, _SMALLEST_DECAY))
        self.catch_up(rows)

    def read(self) -> Float[Tensor, "rows width"]:
        """Return the average of every row."""
        return self._current(self._table, self._average, self._seen)

    def copy_to_table(self) -> None:
        """Overwrite the table with its average."""
        self._table.copy_(self.read())

    @contextmanager
    def kept_table(self) -> Iterator[None]:
        """Restore the table afterwards."""
        table = self._table.clone()
        try:
            yield
        finally:
            self._table.copy_(table)

    def _current(self, table: Tensor, average: Tensor, seen: Tensor) -> Tensor:
        remaining = torch.exp(self._log_decay - seen).to(table.dtype)[:, None]
        return table.lerp(average, remaining)

    def state_dict(self) -> dict[str, Tensor | float]:
        """Everything that changes."""
        return {"average": self._average, "seen": self._seen, "log_decay": self._log_decay}

    def load_state_dict(self, state: dict[str, Tensor | float]) -> None:
        """Restore in place what `state_dict` returned."""
        self._average.copy_(state["average"])  # type: ignore[arg-type]
        self._seen.copy_(state["seen"])  # type: ignore[arg-type]
        self._log_decay = float(state["log_decay"])
