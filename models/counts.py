"""What passes through models take, counted once for presets and studies. Light: imports no torch.

`counted.json` holds the counts; whatever else is asked for is counted by `COUNTERS`, on tensors without data.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from models.detector.config_sources import dotted
from models.detector.options import DetectorConfig
from models.generator.options import GeneratorConfig, NewModelConfig
from models.passes import ModelCount, Pass

COUNTED_FILE = Path(__file__).with_name("counted.json")

COUNTERS = {"generator": "models.training.operations", "detector": "models.detector.operations"}
"""What is counted to the module whose `count_model(options)` does it, which loads torch."""


@dataclass(frozen=True, slots=True)
class CountedModel:
    """What a count depends on.

    Attributes:
        kind: of the counter.
        options: those that it depends on, canonical JSON.
    """

    kind: Literal["generator", "detector"]
    options: str

    @property
    def key(self) -> str:
        """In `counted.json`."""
        return f"{self.kind} {self.options}"


def generator_model(config: GeneratorConfig) -> CountedModel:
    """What a generator's count depends on; a base model with a name is taken for Stable Diffusion v1.5."""
    names = {"resolution", "layout_conditioning", "location_grid", "lora_rank", "embedding_rows"}
    options: dict[str, Any] = config.model_dump(mode="json", include=names)
    if isinstance(config.base_model, NewModelConfig):
        options["base_model"] = config.base_model.model_dump(mode="json", exclude={"decoder_steps"})
    options["perception_weight"] = float(config.perception_weight > 0)
    options["text_learning_rate"] = float(config.text_learning_rate > 0)
    options["ema_decay"] = None if config.ema_decay is None else 0.0
    return CountedModel("generator", json.dumps(options, sort_keys=True))


def detector_model(config: DetectorConfig) -> CountedModel:
    """What a detector's count depends on."""
    overrides = {k: v for k, v in dotted(config.overrides).items() if k.startswith("model.")}
    options = {"config": config.config, "image_size": config.image_size, "overrides": overrides}
    return CountedModel("detector", json.dumps(options, sort_keys=True))


@cache
def known_counts() -> dict[str, ModelCount]:
    """The counts of the presets' and studies' models, by key."""
    return TypeAdapter(dict[str, ModelCount]).validate_json(COUNTED_FILE.read_bytes())


def find_count(model: CountedModel, counts: Mapping[str, ModelCount]) -> ModelCount | None:
    """A model's count, or of a detector that of another image size, in proportion to pixels.

    So convolutions are; a second stage, which looks at as many regions in any image, is not, and the less of
    it. None where neither was counted.
    """
    if model.key in counts or model.kind != "detector":
        return counts.get(model.key)
    wanted = json.loads(model.options)
    size = wanted.pop("image_size")
    for key, count in counts.items():
        kind, _, text = key.partition(" ")
        options = json.loads(text)
        counted_size = options.pop("image_size", None)
        if kind == model.kind and options == wanted:
            return _scaled(count, _pixels(*size) / _pixels(*counted_size))
    return None


def _scaled(count: ModelCount, factor: float) -> ModelCount:
    passes = {name: _scaled_pass(item, factor) for name, item in count.passes.items()}
    return count.model_copy(update={"passes": passes})


def _scaled_pass(of: Pass, factor: float) -> Pass:
    names = ("flops", "bytes", "held")
    return of.model_copy(update={name: round(getattr(of, name) * factor) for name in names})


def _pixels(long: int, short: int) -> float:
    """Of an image of 4 to 3, or of a square, that fits these sides."""
    return short * min(long, short * 4 / 3)
