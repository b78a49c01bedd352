"""Samples during training, and whether a detector finds the boxes in them."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from data.layouts.layout import read_layouts
from models.detector.detector import Detections
from models.generator.drawing_options import SamplingConfig
from models.generator.options import ProbeConfig
from models.training.probe import GeneratorProbe

CONFIG = ProbeConfig(sampling=SamplingConfig(sampler="unipc", num_inference_steps=1, batch_size=4))


class Seeing:
    """Finds every thing of the layouts in the pixels of the file that it is shown."""

    def __init__(self, layouts):
        self.layouts = {item.image_id: item for item in layouts}
        self.sizes = {}

    def detect(self, images, batch_size):
        for image_id, path in images:
            layout = self.layouts[image_id]
            with Image.open(path) as picture:
                self.sizes[image_id] = picture.size
            boxes = layout.boxes_normalized[layout.is_thing] * np.tile(self.sizes[image_id], 2)
            labels = layout.category_ids[layout.is_thing]
            scores = np.ones(len(boxes), np.float32)
            yield Detections(image_id, boxes.astype(np.float32), scores, labels)


def test_pictures_are_looked_at_in_their_own_pixels(new_generator, photographs, tmp_path):
    layouts = read_layouts(photographs, None, "val")
    probe = GeneratorProbe(CONFIG, layouts, None, tmp_path / "probes")
    probe._detector = detector = Seeing(layouts)
    metrics = probe.sample(SimpleNamespace(generator=new_generator(), step=7))
    assert metrics["layout_recall"] == pytest.approx(1)
    assert metrics["layout_recall_shuffled"] < 1
    assert list(detector.sizes.values())[:4] == [(74, 55), (55, 74), (114, 36), (48, 36)]
    assert [path.name for path in (tmp_path / "probes").iterdir()] == ["step-00000007.png"]
