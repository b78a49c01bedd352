"""Another host of a training, in a process that is forked and so has imported what it needs."""

import runpy
import sys


def take_part(kind: str, work: str) -> None:
    """Do what `python -m KIND WORK` does."""
    from forked import launch_forked

    launch_forked()
    sys.argv = [kind, work]
    runpy.run_module(kind, run_name="__main__")
