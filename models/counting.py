"""Counting what a pass takes, on tensors without data."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from models.passes import Pass

_MANY = 64
"""Images, with which what is held is no longer gradients alone."""


def counted_pass(run: Callable[[int], object]) -> Pass:
    """Count a pass, in which attention is the plain products; all is linear in the number of images.

    Args:
        run: makes it of so many images.
    """
    one, many = _counted(run, 1), _counted(run, _MANY)

    def per_image(name: str) -> int:
        return round((getattr(many, name) - getattr(one, name)) / (_MANY - 1))

    return Pass(
        flops=per_image("flops"),
        bytes=per_image("bytes"),
        fixed_bytes=one.bytes - per_image("bytes"),
        kernels=one.kernels,
        held=per_image("held"),
    )


def _counted(run: Callable[[int], object], num_images: int) -> Pass:
    flops, live, kernels = FlopCounterMode(display=False), LiveBytes(), _Kernels()
    with sdpa_kernel(SDPBackend.MATH), live, flops, kernels:
        run(num_images)
    return Pass(
        flops=flops.get_total_flops(),
        bytes=kernels.bytes,
        fixed_bytes=0,
        kernels=kernels.count,
        held=live.peak,
    )


class _Kernels(TorchDispatchMode):  # type: ignore[no-untyped-call]  # untyped
    """Counts the operators that are called while it is on, but for views, and what they read and write."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # likewise
        self.count = self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operator and count it."""
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.count += 1
            tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
            self.bytes += sum(x.numel() * x.element_size() for x in tensors if not x.is_sparse)
        return result


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # untyped
    """Counts the storages that are made while it is on and not gone yet.

    Attributes:
        peak: most bytes at once, without gradients of parameters.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # likewise
        self.peak = 0
        self._now = 0
        self._seen: set[int] = set()

    @contextmanager
    def without_gradients(self, modules: nn.Module) -> Iterator[None]:
        """Count gradients of parameters no longer once they are there; there must be none before."""
        trained = [p for p in modules.parameters() if p.requires_grad]
        handles = [p.register_post_accumulate_grad_hook(self._forget_gradient) for p in trained]  # type: ignore[no-untyped-call]  # likewise
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operator and count what it made."""
        result = func(*args, **(kwargs or {}))
        for item in tree_leaves(result):
            if isinstance(item, Tensor) and not item.is_sparse:
                self._count(item.untyped_storage())
        self.peak = max(self.peak, self._now)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()  # noqa: SLF001  # no public identity
        if key not in self._seen:
            self._seen.add(key)
            self._now += size
            weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self._now -= size

    def _forget_gradient(self, parameter: Tensor) -> None:
        if parameter.grad is not None and not parameter.grad.is_sparse:
            self._now -= parameter.grad.numel() * parameter.grad.element_size()
