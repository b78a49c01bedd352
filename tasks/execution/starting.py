"""What holds of this process while it starts others, and is theirs from then on."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from tasks.execution.child import NVML_CHECK


@contextmanager
def without_main() -> Iterator[None]:
    """Hide the main module: a new process would import it again, and has no use for it."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Let processes that are started meanwhile have no part in a Ctrl-C: it would break off their imports."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def gpu_looked_for_without_cuda() -> Iterator[None]:
    """Let processes that are started meanwhile look for a GPU by NVIDIA's management library alone."""
    os.environ[NVML_CHECK] = "1"
    try:
        yield
    finally:
        del os.environ[NVML_CHECK]
