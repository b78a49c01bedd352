"""What several processes are to do in the tests of `train_in_processes`."""

import errno
import os

from data.errors import InvalidConfig


def work(context):
    context.progress(1, 2, f"by {os.environ['RANK']}")
    context.progress(2, 2, f"by {os.environ['RANK']}")
    (context.out / os.environ["RANK"]).touch()


def be_wrong(context):
    raise InvalidConfig("the user did it")


def fill_the_disk(context):
    raise OSError(errno.ENOSPC, "No space left on device")


def need_memory(context):
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory")
