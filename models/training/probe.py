"""What is looked at while the generator is trained: whether boxes and masks come out right."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from data.layouts.gallery import contact_sheet, layout_sheet, png_bytes
from data.layouts.layout import Layout, image_seed
from data.vocabulary.splits import Split
from models.detector.darknet import DarknetDetector
from models.detector.detector import Detector, detections_table
from models.detector.loading import load_detector
from models.generator.options import GeneratorConfig, ProbeConfig
from models.generator.sampling import Picture, draw_pictures, generated_size
from models.metrics.coco_metrics import detection_recall
from models.training.batches import make_batch
from models.training.loop import predict_masks
from models.training.metrics_file import Metrics
from models.training.state import TrainingState
from models.training.training_set import TrainingSet

_SPLIT: Split = "val"
_NUM_PICTURES = 16
_NUM_MASK_IMAGES = 8
_MASK_TIMESTEP = 100
"""Little noise: what the head sees there is the best it can do."""
_THUMBNAIL = 96
_PALETTE = np.array(
    [(230, 60, 60), (60, 180, 75), (0, 110, 220), (245, 180, 40), (145, 60, 190), (70, 200, 220)]
)


class GeneratorProbe:
    """Samples a fixed set of layouts and asks a detector whether the boxes are there.

    Args:
        config: which layouts and how they are sampled.
        layouts: validation layouts, with the attributes as measured.
        detector: folder of the detector; None to look at the samples alone.
        folder: for `step-….png`, some samples with their boxes, and `masks-….png`.
    """

    def __init__(
        self, config: ProbeConfig, layouts: list[Layout], detector: Path | None, folder: Path
    ) -> None:
        self._config = config
        self._layouts = layouts
        self._detector = load_detector(detector) if detector else None
        self._folder = folder
        folder.mkdir(exist_ok=True)

    def layout_recall(
        self, detector: Detector | DarknetDetector, pictures: Sequence[Picture]
    ) -> Metrics:
        """Share of things found where the layout has them, and where another image's layout has some.

        The second is what a generator that ignores its boxes would get.

        Args:
            pictures: one of each layout.
        """
        images = [(item.layout.image_id, item.path) for item in pictures]
        found = detections_table(
            _SPLIT, detector.detect(images, self._config.sampling.batch_size), "probe"
        )
        things = {
            layout.image_id: (boxes[layout.is_thing], layout.category_ids[layout.is_thing])
            for layout, boxes in ((item.layout, item.boxes) for item in pictures)
        }
        others = [*list(things.values())[1:], *list(things.values())[:1]]
        shuffled = dict(zip(things, others, strict=True))
        return {
            "layout_recall": detection_recall(things, found),
            "layout_recall_shuffled": detection_recall(shuffled, found),
        }

    def sample(self, state: TrainingState) -> Metrics:
        """Draw the layouts and measure them; write the contact sheet."""
        sampling, resolution = self._config.sampling, state.generator.model.resolution
        pictures = [
            Picture(
                layout=item,
                seed=image_seed(sampling.seed, item.image_id, 0),
                size=generated_size(item.width, item.height, resolution),
                path=self._folder / f"{item.image_id}.png",
            )
            for item in self._layouts
        ]
        for _ in draw_pictures(state.generator, pictures, sampling):
            pass
        metrics = self.layout_recall(self._detector, pictures) if self._detector else {}
        sheet = layout_sheet((item.path, item.layout) for item in pictures[:_NUM_PICTURES])
        (self._folder / f"step-{state.step:08d}.png").write_bytes(png_bytes(sheet))
        for item in pictures:
            item.path.unlink()
        return metrics

    def draw_masks(
        self, state: TrainingState, training_set: TrainingSet, config: GeneratorConfig
    ) -> None:
        """Write true masks above predicted ones, of the same training images every time."""
        plain = {"batch_size": _NUM_MASK_IMAGES, "prompt_dropout": 0.0, "flip_probability": 0.0}
        batch = make_batch(state.generator, training_set, config.model_copy(update=plain), step=0)
        batch = replace(batch, timesteps=torch.full_like(batch.timesteps, _MASK_TIMESTEP))
        model = state.generator.model
        batch = batch.to(model.unet.device)
        predicted, true = predict_masks(state, batch)
        pictures = model.decode(batch.latents, config.mixed_precision)
        rows = [
            [_with_masks(*pair) for pair in zip(pictures, masks.cpu().numpy(), strict=True)]
            for masks in (true >= 0.5, predicted)
        ]
        (self._folder / f"masks-{state.step:08d}.png").write_bytes(png_bytes(contact_sheet(rows)))


def _with_masks(image: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Tint each mask, given on the latent grid, over a thumbnail of the image."""
    size = (_THUMBNAIL, _THUMBNAIL)
    picture = np.asarray(Image.fromarray(image).resize(size), dtype=np.float64)
    for index, mask in enumerate(masks):
        inside = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
        picture[inside] = 0.45 * picture[inside] + 0.55 * _PALETTE[index % len(_PALETTE)]
    return picture.round().astype(np.uint8)
