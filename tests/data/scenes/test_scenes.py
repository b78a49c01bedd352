import json

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from data.scenes.classes import STUFF, THINGS
from data.scenes.scenes import Scene, SceneObject, render_scene
from data.scenes.writing import _litter_around, write_scenes
from data.vocabulary.boxes import mask_to_box, xyxy_to_xywh


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, num_train=10, num_val=3)
    return folder


def test_pycocotools_reads_it(root):
    things = COCO(str(root / "annotations/instances_train.json"))
    stuff = COCO(str(root / "annotations/stuff_train.json"))
    assert [item["name"] for item in things.loadCats(things.getCatIds())] == list(THINGS)
    assert [item["name"] for item in stuff.loadCats(stuff.getCatIds())] == list(STUFF)
    for image_id in things.getImgIds():
        assert 3 <= len(things.getAnnIds(image_id)) <= 8


def test_boxes_and_areas_are_those_of_the_masks(root):
    coco = COCO(str(root / "annotations/instances_train.json"))
    for item in coco.loadAnns(coco.getAnnIds()):
        mask = coco.annToMask(item).astype(bool)
        assert item["bbox"] == xyxy_to_xywh(mask_to_box(mask)).tolist()
        assert item["area"] == mask.sum()


def test_no_pixel_belongs_to_two_labels(root):
    things = COCO(str(root / "annotations/instances_val.json"))
    stuff = COCO(str(root / "annotations/stuff_val.json"))
    for image_id in things.getImgIds():
        masks = [
            coco.annToMask(item)
            for coco in (things, stuff)
            for item in coco.loadAnns(coco.getAnnIds(image_id))
        ]
        assert np.sum(masks, axis=0).max() == 1


def test_an_image_depends_on_seed_split_and_index_alone(root, tmp_path):
    write_scenes(tmp_path, num_train=2, num_val=1, num_workers=2)
    name = "train/000000000002.png"
    assert (tmp_path / name).read_bytes() == (root / name).read_bytes()
    other = tmp_path / "other"
    write_scenes(other, num_train=2, num_val=1, seed=1)
    assert (other / name).read_bytes() != (root / name).read_bytes()


def test_faded_objects_differ_less_from_what_is_behind_them(root):
    document = json.loads((root / "annotations/instances_train.json").read_text())
    names = {item["id"]: item["file_name"] for item in document["images"]}
    coco = COCO(str(root / "annotations/instances_train.json"))
    spread: dict[bool, list[float]] = {True: [], False: []}
    for item in document["annotations"]:
        pixels = np.asarray(Image.open(root / "train" / names[item["image_id"]]), dtype=float)
        mask = coco.annToMask(item).astype(bool)
        if item["difficulty"]["blur"] == 0:
            spread[item["difficulty"]["contrast"] < 0.5].append(pixels[mask].std(axis=0).mean())
    assert np.mean(spread[True]) < 0.75 * np.mean(spread[False])


def scene_with(blur=0.0, litter=()):
    crate = SceneObject(1, np.array([0.25, 0.25, 0.75, 0.75]), 1.0, blur, np.ones(3))
    spots = np.array(litter, dtype=float).reshape(-1, 6)
    return Scene((crate,), 0.2, 1.0, (1, 1), 0.0, 0.0, 1.0, spots)


def test_a_blurred_object_is_soft_and_keeps_its_mask():
    sharp, soft = (render_scene(scene_with(blur), 64) for blur in (0.0, 0.04))
    assert (sharp.masks == soft.masks).all()
    edges = [np.abs(np.diff(item.image[..., 0].astype(int))).max() for item in (sharp, soft)]
    assert edges[1] < 0.5 * edges[0]


def test_litter_is_counted_around_the_object_and_not_behind_it():
    beside, behind, far = [[x, 0.5, 0.05, 255, 0, 0] for x in (0.85, 0.5, 0.0)]
    box = scene_with().objects[0].box
    counts = [
        _litter_around(box, render_scene(scene_with(0, [s]), 64)) for s in (beside, behind, far)
    ]
    assert counts[0] > 0.01
    assert counts[1:] == [0, 0]


def test_every_source_of_difficulty_is_recorded(root):
    document = json.loads((root / "annotations/instances_train.json").read_text())
    causes = ("contrast", "brightness", "truncation", "occlusion", "size", "blur", "clutter")
    assert all(set(item["difficulty"]) == set(causes) for item in document["annotations"])
