"""What several processes are to do in the tests of `train_in_processes`."""

import errno
import os

from data.errors import InvalidConfig


def work(context, plan):
    assert plan == "a plan"
    context.progress(1, 2, f"by {os.environ['RANK']}")
    context.progress(2, 2, f"by {os.environ['RANK']}")
    (context.out / os.environ["RANK"]).touch()


def be_wrong(context, plan):
    raise InvalidConfig("the user did it")


def fill_the_disk(context, plan):
    raise OSError(errno.ENOSPC, "No space left on device")


def need_memory(context, plan):
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory")
