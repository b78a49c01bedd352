"""Options of the pre-training of a generator. Light: no torch."""

from typing import Literal

from pydantic import Field

from data.artifacts.options import Options
from models.generator.options import GeneratorConfig, ProbeConfig


class PretrainingConfig(Options):
    """Training of the base model on unlabelled images, before the layouts of labelled ones."""

    num_steps: int = Field(0, ge=0, description="Optimiser steps; 0: none.")
    boxes: Literal["none", "pseudo"] = Field(
        "pseudo",
        description="Learn images alone, or with what the attribute detector finds in them (pseudo_labels).",
    )


def pretraining_options(config: GeneratorConfig, pretraining: PretrainingConfig) -> GeneratorConfig:
    """Options of the pre-training of a generator that is to be trained with `config`.

    Images without objects are trained on too, and there is neither a mask to learn nor a probe.
    """
    changes = {
        "num_epochs": 0,
        "num_steps": pretraining.num_steps,
        "perception_weight": 0.0,
        "layouts": config.protocol.model_copy(update={"min_objects": 0}),
        "probe": ProbeConfig(interval=0),
    }
    return config.model_copy(update=changes)
