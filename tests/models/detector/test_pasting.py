"""What pasting does to boxes; that objects are pasted is in test_detector.py."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from models.detector.config_files import CocoFolder, build_config
from models.detector.mmdetection import DATASETS, BitmapMasks, register_all_modules
from models.detector.options import DetectorConfig
from models.detector.pasting import PasteObjects
from models.detector.seeded_data import SeededConcatDataset

pytestmark = pytest.mark.filterwarnings("ignore")  # MMDetection and MMEngine warn a lot

SIDE, NUM_IMAGES = 320, 16


def scattered(rng):
    sides = rng.uniform(20, 90, (4, 2))
    return np.hstack([rng.uniform(0, SIDE - sides), sides]).tolist()


def in_the_corner(rng):
    """Three, of which the first is small and inside of the second."""
    return [[1, 1, 8, 8], [0, 0, 90, 90], [100, 100, 80, 80]]


def write_images(folder, make_boxes):
    """Images of noise and a COCO file of the ellipses in boxes."""
    rng = np.random.default_rng(0)
    turns = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    circle = np.stack([np.cos(turns), np.sin(turns)], axis=1)
    images, things = [], []
    for image in range(NUM_IMAGES):
        pixels = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{image}.png")
        images.append({"id": image, "file_name": f"{image}.png", "width": SIDE, "height": SIDE})
        for box in make_boxes(rng):
            corner, sides = np.array(box[:2]), np.array(box[2:])
            polygon = (corner + (1 + circle) * sides / 2).flatten().tolist()
            things.append({
                "id": len(things), "image_id": image, "category_id": 1, "iscrowd": 0,
                "bbox": box, "area": float(sides.prod()), "segmentation": [polygon],
            })  # fmt: skip
    parts = {"images": images, "annotations": things, "categories": [{"id": 1, "name": "disc"}]}
    (folder / "a.json").write_text(json.dumps(parts))


def samples(folder, augmentation, *, masks):
    """Three times as many training samples as there are images, of 64 pixels."""
    register_all_modules(init_default_scope=True)
    options = {"image_size": (64, 64), "augmentation": augmentation}
    images = CocoFolder(folder / "a.json", folder, has_masks=masks)
    config = build_config(DetectorConfig.model_validate(options), [images], {1: "disc"}, folder)
    read: SeededConcatDataset = DATASETS.build(config.train_dataloader.dataset)
    return [read[NUM_IMAGES * place + place % NUM_IMAGES] for place in range(3 * NUM_IMAGES)]


def boxes_of(sample):
    return sample["data_samples"].gt_instances.bboxes.tensor


@pytest.mark.parametrize("masks", [True, False])
def test_boxes_of_untouched_objects_are_as_without_pasting(tmp_path, masks):
    write_images(tmp_path, scattered)
    pairs = zip(
        samples(tmp_path, "flip", masks=masks),
        samples(tmp_path, "copy-paste", masks=masks),
        strict=True,
    )
    num_untouched = num_touched = 0
    for plain, pasted in pairs:
        is_pasted, found = (plain["inputs"] != pasted["inputs"]).any(0), boxes_of(pasted).tolist()
        for box in boxes_of(plain):
            left, top = box[:2].floor().int()
            right, bottom = box[2:].ceil().int()
            if is_pasted[top:bottom, left:right].any():
                num_touched += 1
            else:
                num_untouched += 1
                assert box.tolist() in found
    assert min(num_untouched, num_touched) > 20


@pytest.mark.parametrize("masks", [True, False])
def test_no_box_is_without_area(tmp_path, masks):
    write_images(tmp_path, in_the_corner)
    found = [boxes_of(sample) for sample in samples(tmp_path, "copy-paste", masks=masks)]
    assert any(len(boxes) > 3 for boxes in found)
    assert all((boxes[:, 2:] > boxes[:, :2]).all() for boxes in found)


def image(value, boxes, labels, masks=None):
    """What MMDetection's transforms read of an image of one colour, 20 pixels wide and high."""
    from mmdet.structures.bbox import HorizontalBoxes

    found = {
        "img": np.full((20, 20, 3), value, np.uint8),
        "gt_bboxes": HorizontalBoxes(boxes, dtype=torch.float32),
        "gt_bboxes_labels": np.array(labels),
        "gt_ignore_flags": np.array(labels) > 5,
    }
    return found if masks is None else found | {"gt_masks": BitmapMasks(np.stack(masks), 20, 20)}


def paste(onto, objects):
    return PasteObjects(selected=False).transform(onto | {"mix_results": [objects]})


def rectangle(left, top, right, bottom):
    mask = np.zeros((20, 20), np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def test_an_edge_moves_where_something_is_pasted_over_it():
    boxes = [[2.3, 2.4, 9.7, 9.8], [1.2, 12.2, 3.4, 14.7], [8.1, 3.3, 9.9, 4.4]]
    given = image(0, boxes, [0, 1, 2])
    found = paste(given, image(9, [[7.5, 0.25, 15.1, 8.6]], [6]))
    beside = paste(given, image(9, [[7.5, 0.25, 15.1, 19.6]], [6]))
    inside = [[2.3, 2.4, 9.7, 9.8], [1.2, 12.2, 3.4, 14.7], [7.5, 0.25, 15.1, 8.6]]
    assert torch.equal(found["gt_bboxes"].tensor, torch.tensor(inside))
    assert (found["img"][..., 0] == 9 * rectangle(7, 0, 16, 9)).all()
    assert found["gt_bboxes_labels"].tolist() == [0, 1, 6]
    assert found["gt_ignore_flags"].tolist() == [False, False, True]
    assert beside["gt_bboxes"].tensor[0].tolist() == torch.tensor([2.3, 2.4, 7, 9.8]).tolist()


def test_an_object_whose_mask_vanished_is_its_box():
    masks = [rectangle(3, 3, 9, 9), rectangle(0, 0, 0, 0)]
    given = image(0, [[2.5, 2.5, 9.5, 9.5], [11.2, 11.2, 11.8, 11.8]], [0, 1], masks)
    untouched = paste(given, image(9, [[9.2, 9.2, 9.9, 9.9]], [6], [rectangle(0, 0, 0, 0)]))
    assert (untouched["img"][..., 0] == 9 * rectangle(9, 9, 10, 10)).all()
    assert torch.equal(untouched["gt_bboxes"].tensor[:2], given["gt_bboxes"].tensor)
    covered = paste(given, image(9, [[8, 4, 13, 13]], [6], [rectangle(8, 4, 13, 13)]))
    assert covered["gt_bboxes_labels"].tolist() == [0, 6]
    assert covered["gt_bboxes"].tensor[0].tolist() == [2.5, 2.5, 9.5, 9.5]
    assert "gt_masks" not in covered


def test_a_mask_that_fills_little_of_its_box_is_not_taken_for_a_covered_one():
    given = image(0, [[0.5, 0.5, 19.5, 19.5]], [0], [rectangle(1, 1, 3, 3)])
    found = paste(given, image(9, [[8, 4, 13, 13]], [6], [rectangle(8, 4, 13, 13)]))
    assert found["gt_bboxes"].tensor.tolist() == [[0.5, 0.5, 19.5, 19.5], [8, 4, 13, 13]]
