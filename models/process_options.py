"""Options of trainings in several processes, of one host or of several. Light: imports no torch."""

from typing import Annotated, Literal

from pydantic import Field

from data.artifacts.options import RuntimeOnly
from models.precision import require_gpu

Backend = Literal["auto", "nccl", "gloo"]

NumNodes = Annotated[
    int,
    RuntimeOnly,
    Field(ge=1, description="Hosts that num_processes are spread over, each with as many."),
]
RdzvEndpoint = Annotated[
    str | None,
    RuntimeOnly,
    Field(
        pattern=r"^[\w.:\[\]-]+:[1-9]\d{0,4}$",
        description="HOST:PORT of the host that runs the training, where the others find it.",
    ),
]
DistributedBackend = Annotated[
    Backend,
    RuntimeOnly,
    Field(description="What processes exchange gradients by; auto: nccl on GPUs, else gloo."),
]


def check_hosts(num_processes: int, num_nodes: int, rdzv_endpoint: str | None) -> None:
    """Refuse processes that cannot be spread over hosts, and hosts that do not find each other.

    Raises:
        ValueError: they cannot, or do not.
    """
    if num_processes % num_nodes:
        raise ValueError(
            f"num_processes {num_processes} is not a multiple of num_nodes {num_nodes}"
        )
    if (num_nodes > 1) != bool(rdzv_endpoint):
        raise ValueError(
            "num_nodes from 2 on and rdzv_endpoint, HOST:PORT of the host that runs the training, "
            f"need each other: they are {num_nodes} and {rdzv_endpoint}"
        )


def check_backend(backend: Backend) -> None:
    """Refuse a backend that this machine lacks.

    Raises:
        InvalidConfig: it is for GPUs, and there is none.
    """
    if backend == "nccl":
        require_gpu("distributed_backend", "nccl")
