"""Where to run."""

import torch


def default_device() -> torch.device:
    """The first CUDA device where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def limit_threads(num_threads: int) -> None:
    """Let torch use at most this many CPU threads in this process."""
    torch.set_num_threads(num_threads)
