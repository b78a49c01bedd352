"""The precisions that models run in."""

from typing import Literal

Precision = Literal["auto", "no", "bf16", "fp16"]

PRECISION_HELP = (
    "Of matrix products; auto: bf16 where the hardware multiplies it, else full. Part of the key as it is "
    "written: which one auto came to stands in the manifest, and a step goes on in the one it began with."
)
