"""What a pass through a model takes, and a core's speed at it. Light: imports no torch."""

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict


class Pass(BaseModel):
    """A pass through a model, of a number of images at once, in full precision.

    Attributes:
        flops: floating-point operations of matrix products and convolutions, for each image.
        bytes: that its operators read and write in memory, for each image.
        fixed_bytes: likewise, whatever the number of images: weights.
        kernels: operators that are called, whatever the number of images.
        held: bytes in use at once, for each image.
    """

    model_config = ConfigDict(frozen=True)

    flops: int
    bytes: int
    fixed_bytes: int
    kernels: int
    held: int


class ModelCount(BaseModel):
    """A model.

    Attributes:
        parameters: that are kept.
        trained: of them.
        tensors: that the trained ones are in.
        frozen: of a generator's modules that are trained in part, the parameters that are not.
        passes: by name: `train`, `forward`; of a generator also `text`, `encode` and `decode`.
        least_gpu_memory: bytes that a training takes at least, see `plan --memory`.
    """

    model_config = ConfigDict(frozen=True)

    parameters: int
    trained: int
    tensors: int
    frozen: int = 0
    passes: dict[str, Pass]
    least_gpu_memory: int = 0


@dataclass(frozen=True, slots=True)
class Speed:
    """What a core reaches.

    Attributes:
        flops: operations a second, in convolutions forward and backward.
        bytes: a second, read and written by sums of tensors that were not used just now.
        kernel: seconds to call an operator on next to nothing, forward or backward.
    """

    flops: float
    bytes: float
    kernel: float
