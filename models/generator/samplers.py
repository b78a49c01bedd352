"""The samplers that there are, with the settings that images are drawn with."""

from typing import Any

from diffusers import (
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    PNDMScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)

_SPACING = {"timestep_spacing": "leading"}
"""Stable Diffusion's. Samplers differ in their defaults, which a scheduler that was made in memory takes."""

_SAMPLERS: dict[str, tuple[type[SchedulerMixin], dict[str, object]]] = {
    "pndm": (PNDMScheduler, {"skip_prk_steps": True}),
    "unipc": (UniPCMultistepScheduler, {}),
    "dpm-solver++": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
}


def new_sampler(name: str, noise_scheduler: DDPMScheduler) -> Any:
    """A sampler, by its name among the options, for a model that was trained with a noise schedule."""
    sampler_class, options = _SAMPLERS[name]
    return sampler_class.from_config(noise_scheduler.config, **_SPACING, **options)
