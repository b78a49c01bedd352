"""MMDetection detectors in use: loading, inference, writing.

A trained detector is a folder with `config.py` (plain values, as MMEngine's `Config.dump` writes them),
`model.safetensors` and `detector.json` (the categories).
"""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import init_default_scope
from safetensors.torch import load_model, save_file

from data.errors import InvalidModel
from data.vocabulary.tables import BOX_COLUMNS, DETECTIONS
from models.detector.checkpoints import read_checkpoint
from models.detector.classes import categories_by_name
from models.detector.config_files import read_config, set_everywhere
from models.detector.exported_config import (
    exported_config,
    read_exported_config,
    require_exportable,
)
from models.detector.given_options import CheckpointConfig
from models.detector.mmdetection import MODELS, register_all_modules
from models.devices import default_device

logger = logging.getLogger(__name__)

_NEED_LABELS = ("LoadAnnotations", "LoadPanopticAnnotations")
"""Steps of a test pipeline that plain inference goes without."""


@dataclass(frozen=True, slots=True)
class Detections:
    """What a detector found in one image.

    Attributes:
        image_id: COCO image id.
        boxes: xyxy in pixels of the original image, float32 (num_detections, 4).
        scores: in [0, 1], float32 (num_detections,).
        category_ids: COCO category ids, int64 (num_detections,).
    """

    image_id: int
    boxes: np.ndarray
    scores: np.ndarray
    category_ids: np.ndarray


def detections_table(split: str, detections: Iterable[Detections], detector: str) -> pa.Table:
    """Collect a detector's detections into a table with schema `data.vocabulary.tables.DETECTIONS`."""
    found = list(detections)
    boxes = np.concatenate([np.zeros((0, 4), np.float32), *(item.boxes for item in found)])
    counts = [len(item.scores) for item in found]
    return pa.table(
        {
            "split": np.full(sum(counts), split, dtype=object),
            "image_id": np.repeat([item.image_id for item in found], counts).astype(np.int64),
            "category_id": np.concatenate(
                [np.zeros(0, np.int64), *(i.category_ids for i in found)]
            ),
            "score": np.concatenate([np.zeros(0, np.float32), *(item.scores for item in found)]),
            **{name: boxes[:, column] for column, name in enumerate(BOX_COLUMNS)},
            "detector": np.full(sum(counts), detector, dtype=object),
        },
        schema=DETECTIONS,
    )


def write_detector(
    folder: Path, model: torch.nn.Module, config: Config, categories: Sequence[tuple[int, str]]
) -> None:
    """Write a detector's folder.

    Args:
        config: its `model` and `test_pipeline` are kept.
        categories: COCO category id and name, in label order.
    """
    folder.mkdir(parents=True, exist_ok=True)
    exported_config(config).dump(folder / "config.py")
    model.to(memory_format=torch.contiguous_format)
    save_file(_distinct(model.state_dict()), folder / "model.safetensors")
    (folder / "detector.json").write_text(json.dumps({"categories": list(categories)}))


def _distinct(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights that modules share under their first name alone, as `load_model` reads them.

    `save_model` of safetensors would note the other names too, in an order that differs from run to run.
    """
    first: dict[tuple[int | str, torch.Size], str] = {}
    for name, weight in sorted(weights.items()):
        first.setdefault((weight.data_ptr() or name, weight.shape), name)  # 0: it is empty
    return {name: weights[name].contiguous() for name in first.values()}


class Detector:
    """A trained detector, ready for inference."""

    def __init__(
        self, model: torch.nn.Module, config: Config, categories: Sequence[tuple[int, str]]
    ):
        self._model = model.to(default_device()).eval()
        self._config = config
        self._pipeline = Compose(config.test_pipeline)
        self._category_ids = np.array([category_id for category_id, _ in categories])
        self.categories = tuple(categories)

    @classmethod
    def load(cls, folder: Path, things: Mapping[int, str] | None = None) -> "Detector":
        """Load a folder written by `train_detector`.

        Args:
            things: category id to name of another data set than the detector's, whose ids it is to
                report; a class not among them is reported as `UNKNOWN_CLASS`.

        Raises:
            InvalidModel: a file is missing or does not fit the config.
        """
        register_all_modules(init_default_scope=False)
        init_default_scope("mmdet")
        try:
            config = read_exported_config(folder / "config.py")
            categories = json.loads((folder / "detector.json").read_text())["categories"]
            model = MODELS.build(config.model)
            load_model(model, str(folder / "model.safetensors"))
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            raise InvalidModel(f"detector folder {folder}: {error}") from error
        if things:
            categories = categories_by_name([name for _, name in categories], things)
        return cls(model, config, [(key, name) for key, name in categories])

    @classmethod
    def from_checkpoint(cls, source: CheckpointConfig, things: Mapping[int, str]) -> "Detector":
        """Load an MMDetection config with its checkpoint.

        Args:
            things: category id to name of the data set; a class of the detector that is not among
                them is reported as `UNKNOWN_CLASS`.

        Raises:
            InvalidModel: a file is missing or cannot be read, or the two do not fit each other.
            InvalidConfig: the mapping of class names has one that is not there, or the config has types
                with which its detector could not be loaded from a folder.
        """
        register_all_modules(init_default_scope=False)
        init_default_scope("mmdet")
        checkpoint = read_checkpoint(source.checkpoint)
        try:
            config = read_config(source.config)
            set_everywhere(config.model, "init_cfg", None)
            model = MODELS.build(config.model)
            model.load_state_dict(checkpoint.weights)
            config.test_pipeline = [
                step for step in config.test_pipeline if step["type"] not in _NEED_LABELS
            ]
            require_exportable(source.config, config)
        except (OSError, SyntaxError, RuntimeError, LookupError, AttributeError, TypeError,
                ValueError) as error:  # fmt: skip
            raise InvalidModel(
                f"{source.checkpoint} with config {source.config}: {error}"
            ) from error
        names = source.classes or checkpoint.classes or tuple(things.values())
        return cls(model, config, categories_by_name(names, things, source.class_names))

    def save(self, folder: Path) -> None:
        """Write the folder that `load` reads: `config.py`, `model.safetensors` and `detector.json`."""
        write_detector(folder, self._model, self._config, self.categories)

    @torch.no_grad()
    def detect(self, images: Sequence[tuple[int, Path]], batch_size: int) -> Iterator[Detections]:
        """Detect objects in image files; the next batch is read while the model works.

        Args:
            images: COCO image id and path of each image.

        Yields:
            One `Detections` per image, in order.

        Raises:
            InvalidModel: the detector knows more classes than it has names.
        """
        batches = [images[i : i + batch_size] for i in range(0, len(images), batch_size)]
        with ThreadPoolExecutor() as pool:
            ahead = pool.map(self._read, batches[0] if batches else ())
            for batch, following in zip(batches, [*batches[1:], ()], strict=True):
                inputs = list(ahead)
                ahead = pool.map(self._read, following)
                results = self._model.test_step(pseudo_collate(inputs))  # type: ignore[operator]
                for (image_id, _), result in zip(batch, results, strict=True):
                    yield self._detections(image_id, result.pred_instances)

    def _read(self, image: tuple[int, Path]) -> Any:
        return self._pipeline({"img_id": image[0], "img_path": str(image[1])})

    def _detections(self, image_id: int, found: Any) -> Detections:
        labels = found.labels.cpu().numpy()
        if len(labels) and labels.max() >= len(self._category_ids):
            raise InvalidModel(
                f"the detector reports class {labels.max()} and has {len(self._category_ids)} class "
                "names: give its option classes, in label order"
            )
        boxes = found.bboxes.cpu().numpy().astype(np.float32)
        scores = found.scores.cpu().numpy().astype(np.float32)
        finite = np.isfinite(boxes).all(axis=1) & np.isfinite(scores)
        if not finite.all():
            logger.warning("image %d: %d detections are not finite", image_id, (~finite).sum())
        return Detections(
            image_id, boxes[finite], scores[finite], self._category_ids[labels[finite]]
        )
