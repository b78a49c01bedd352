"""Options of trainings in several processes, of one host or of several. Light: imports no torch."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from data.artifacts.options import Options, RuntimeOnly
from models.precision import require_gpu

Backend = Literal["auto", "nccl", "gloo"]


class DistributedOptions(Options):
    """Options of a training in one process or in several, each with a GPU where there are some."""

    num_processes: int = Field(1, ge=1)
    num_nodes: Annotated[int, RuntimeOnly] = Field(
        1, ge=1, description="Hosts that num_processes are spread over, each with as many."
    )
    rdzv_endpoint: Annotated[str | None, RuntimeOnly] = Field(
        None,
        pattern=r"^[\w.:\[\]-]+:[1-9]\d{0,4}$",
        description="HOST:PORT of the host that runs the training, where the others find it.",
    )
    distributed_backend: Annotated[Backend, RuntimeOnly] = Field(
        "auto", description="What processes exchange gradients by; auto: nccl on GPUs, else gloo."
    )

    @model_validator(mode="after")
    def _hosts_find_each_other(self) -> Self:
        if self.num_processes % self.num_nodes:
            raise ValueError(
                f"num_processes {self.num_processes} is not a multiple of num_nodes {self.num_nodes}"
            )
        if (self.num_nodes > 1) != bool(self.rdzv_endpoint):
            raise ValueError(
                "num_nodes from 2 on and rdzv_endpoint, HOST:PORT of the host that runs the training, "
                f"need each other: they are {self.num_nodes} and {self.rdzv_endpoint}"
            )
        return self

    @property
    def num_gpus(self) -> int:
        """One for each process of a host."""
        return self.num_processes // self.num_nodes

    def check_without_data(self) -> None:
        """Refuse NCCL without a GPU.

        Raises:
            InvalidConfig: there is none.
        """
        if self.distributed_backend == "nccl":
            require_gpu("distributed_backend", "nccl")
