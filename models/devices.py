"""Where to run, and in which precision."""

import gc
import resource
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from data.artifacts.files import durable_file
from data.errors import InvalidConfig
from models.precision import Precision, has_gpu


def default_device() -> torch.device:
    """The current CUDA device where there is one, else the CPU.

    Raises:
        InvalidConfig: there is a GPU that PyTorch cannot use.
    """
    if torch.cuda.is_available():
        return torch.device("cuda")
    _refuse_unusable_gpu()
    return torch.device("cpu")


@cache
def _refuse_unusable_gpu() -> None:
    """PyTorch would go to the CPU, where a training takes weeks, with a warning alone."""
    if not has_gpu() or torch.version.cuda is None:  # one without CUDA was chosen
        return
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]  # untyped
    except RuntimeError as error:
        raise InvalidConfig(
            f"PyTorch {torch.__version__} cannot use the GPU that is here; CUDA_VISIBLE_DEVICES= takes the "
            f"CPU instead. {str(error).splitlines()[0]}"
        ) from error


def resolve_precision(precision: Precision) -> Precision:
    """Turn `auto` into `bf16` where the hardware multiplies bfloat16 matrices.

    Else into `fp16` on a GPU (V100, T4), and into `no` on a CPU.

    Raises:
        InvalidConfig: the GPU does not multiply them, and bf16 is asked for.
    """
    if precision == "bf16" and torch.cuda.is_available() and not _multiplies_bf16():
        raise InvalidConfig(
            "mixed_precision bf16: this GPU does not multiply bfloat16 matrices: use auto, fp16 or no"
        )
    if precision != "auto":
        return precision
    if torch.cuda.is_available():
        return "bf16" if _multiplies_bf16() else "fp16"
    return "bf16" if torch.cpu._is_amx_tile_supported() else "no"  # noqa: SLF001  # no public name


def _multiplies_bf16() -> bool:
    return torch.cuda.is_bf16_supported(including_emulation=False)


def settled_precision(work: Path, precision: Precision) -> Precision:
    """What `auto` comes to where a piece of work was begun, noted in its folder.

    It goes on in that precision on whatever hardware it is taken up again.
    """
    note = work / "precision.txt"
    if not note.exists():
        with durable_file(note) as file:
            file.write(resolve_precision(precision).encode())
    return cast("Precision", note.read_text())


def autocast(precision: Precision) -> torch.autocast:
    """Context in which matrix products run in a precision."""
    resolved = resolve_precision(precision)
    dtype = torch.float16 if resolved == "fp16" else torch.bfloat16
    return torch.autocast(default_device().type, dtype, enabled=resolved != "no")


def full_float32(precision: Precision) -> AbstractContextManager[None]:
    """Context in which `no` is full precision on a GPU too: cuDNN would take TensorFloat-32 by itself."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=resolve_precision(precision) != "no")


def attention_kernel() -> AbstractContextManager[None]:
    """Context for attention that is trained: on a CPU the plain kernel.

    The flash kernel's backward pass in bfloat16 is slow there: with it a demo step's passes took 137 ms
    instead of 121 (one thread, `benchmarks/train_step.py`'s modules).
    """
    if default_device().type == "cpu":
        return sdpa_kernel(SDPBackend.MATH)
    return nullcontext()


def to_device(module: nn.Module) -> None:
    """Bring a module to the default device, in place, in the form in which it is fast there.

    Convolutions on a CPU want their channels last. A GPU's group norm copies such tensors, and its autocast
    computes norms in float32, for which it copies all others too: there channels stay first, and norms are
    computed in the precision of their input, as a CPU's autocast does. Measured: docs/gpu.md.
    """
    device = default_device()
    module.to(device)
    if device.type == "cpu":
        module.to(memory_format=torch.channels_last)
    else:
        norms_in_precision_of_input(module)


def norms_in_precision_of_input(module: nn.Module) -> None:
    """Keep autocast's float32 away from a module's norms; the kernels' statistics have it all the same."""
    for part in module.modules():
        if type(part) in _NORMS:
            part.__class__ = _NORMS[type(part)]


class _GroupNorm(nn.GroupNorm):
    def forward(self, inputs: Tensor) -> Tensor:
        weight, bias = self.weight.to(inputs.dtype), self.bias.to(inputs.dtype)
        with torch.autocast(inputs.device.type, enabled=False):
            return functional.group_norm(inputs, self.num_groups, weight, bias, self.eps)


class _LayerNorm(nn.LayerNorm):
    def forward(self, inputs: Tensor) -> Tensor:
        weight, bias = self.weight.to(inputs.dtype), self.bias.to(inputs.dtype)
        with torch.autocast(inputs.device.type, enabled=False):
            return functional.layer_norm(inputs, self.normalized_shape, weight, bias, self.eps)


_NORMS: dict[type[nn.Module], type[nn.Module]] = {
    nn.GroupNorm: _GroupNorm,
    nn.LayerNorm: _LayerNorm,
}


def release_memory() -> None:
    """Give a GPU's memory that is no longer used back to others."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def peak_memory_bytes() -> int:
    """Most memory in use so far: on the CUDA device, or resident in this process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
