import json

import numpy as np
import pytest
from PIL import Image

from data.artifacts.digests import DigestMemory
from data.errors import InvalidDataset
from data.ingest.ingestion import ingest
from data.ingest.options import IngestConfig, SplitConfig
from data.vocabulary.masks import decode_mask
from data.vocabulary.tables import Dataset, box_array

CATEGORIES = [
    {"id": 3, "name": "cat", "isthing": 1},
    {"id": 100, "name": "sky", "isthing": 0},
    {"id": 101, "name": "grass", "isthing": 0},
]
CAT, SKY, GRASS = 7, 300, 2 + 256 * 3 + 256**2 * 4
"""Segment ids of one, two and three colour channels."""

OTHER_FORM = "panoptic of another form: Expected `array`, got `null` - at `$.segments_info`"

SEGMENTS = np.full((6, 8), SKY)
SEGMENTS[3:] = GRASS
SEGMENTS[2:4, 2:5] = CAT


def segment(key, category_id):
    rows, columns = np.nonzero(key == SEGMENTS)
    left, top = int(columns.min()), int(rows.min())
    right, bottom = int(columns.max()) + 1, int(rows.max()) + 1
    bbox, area = [left, top, right - left, bottom - top], len(rows)
    return {"id": key, "category_id": category_id, "bbox": bbox, "area": area, "iscrowd": 0}


def annotation(**changes):
    found = [segment(CAT, 3), segment(SKY, 100), segment(GRASS, 101)]
    return {"image_id": 1, "file_name": "a.png", "segments_info": found} | changes


def write_png(path, ids):
    channels = np.stack([ids % 256, ids // 256 % 256, ids // 256**2], axis=2)
    Image.fromarray(channels.astype(np.uint8)).save(path)


@pytest.fixture
def write(tmp_path):
    """Write a data set whose stuff is panoptic; returns its config."""
    images = [{"id": 1, "file_name": "a.jpg", "width": 8, "height": 6}]
    Image.new("RGB", (8, 6)).save(tmp_path / "a.jpg")
    thing = {"id": 1, "image_id": 1, "category_id": 3, "bbox": [2, 2, 3, 2], "area": 6}
    document = {"images": images, "annotations": [thing], "categories": [{"id": 3, "name": "cat"}]}
    (tmp_path / "things.json").write_text(json.dumps(document))
    (tmp_path / "panoptic").mkdir()
    write_png(tmp_path / "panoptic/a.png", SEGMENTS)

    def make(*annotations, **changes):
        stuff = {"images": images, "annotations": annotations, "categories": CATEGORIES}
        (tmp_path / "panoptic.json").write_text(json.dumps(stuff))
        things = SplitConfig(instances=tmp_path / "things.json", images=tmp_path)
        train = things.model_copy(update={"panoptic": tmp_path / "panoptic.json"})
        return IngestConfig(train=train, val=things, **changes)

    return make


def test_stuff_is_read_and_things_are_passed_over(write, tmp_path):
    summary = ingest(write(annotation()), tmp_path / "out", num_workers=2)
    assert summary["refused"] == []
    assert summary["counts"]["train"] == {"images": 1, "things": 1, "crowds": 0, "stuff": 2}
    dataset = Dataset(tmp_path / "out")
    names = {item.category_id: (item.name, item.is_thing) for item in dataset.categories}
    assert names == {3: ("cat", True), 100: ("sky", False), 101: ("grass", False)}
    stuff = dataset.objects.to_pylist()[1:3]
    assert [row["category_id"] for row in stuff] == [100, 101]
    for row, key in zip(stuff, (SKY, GRASS), strict=True):
        assert (decode_mask(row["mask"], 6, 8) == (key == SEGMENTS)).all()
        assert row["area"] == (key == SEGMENTS).sum()
    assert box_array(dataset.objects)[1:3].tolist() == [[0, 0, 8, 3], [0, 3, 8, 6]]
    assert len({row["object_id"] for row in stuff}) == 2


@pytest.mark.parametrize(
    ("changes", "reasons"),
    [
        ({"file_name": "b.png"}, {"panoptic PNG: image file missing (box kept)": "train/1"}),
        (
            {"file_name": "damaged.png"},
            {"panoptic PNG: image file cut short or damaged (box kept)": "train/1"},
        ),
        (
            {"file_name": "../a.jpg"},
            {"panoptic PNG: file name leaves its folder (box kept)": "train/1"},
        ),
        (
            {"file_name": "large.png"},
            {"panoptic PNG: size differs from the image file's (box kept)": "train/1"},
        ),
        (
            {"segments_info": [segment(SKY, 100) | {"id": 5}]},
            {"broken mask (box kept)": "train/1/5"},
        ),
        (
            {"segments_info": [segment(SKY, 100), segment(GRASS, 200)]},
            {"unknown category": f"train/1/{GRASS}"},
        ),
        (
            {"segments_info": [segment(SKY, 100) | {"bbox": [0, 0, 0, 3]}]},
            {"box without area": f"train/1/{SKY}"},
        ),
        (
            {"image_id": 9, "segments_info": [segment(SKY, 100)]},
            {"unknown or refused image": f"train/9/{SKY}"},
        ),
        ({"segments_info": None}, {OTHER_FORM: "train/without id"}),
    ],
)
def test_what_is_broken_is_accounted_for(write, tmp_path, changes, reasons):
    write_png(tmp_path / "panoptic/large.png", np.zeros((9, 9), int))
    whole = (tmp_path / "panoptic/a.png").read_bytes()
    middle = whole.index(b"IDAT") + 12
    (tmp_path / "panoptic/damaged.png").write_bytes(whole[:middle] + bytes(4) + whole[middle + 4 :])
    summary = ingest(write(annotation(**changes)), tmp_path / "out")
    assert {row["reason"]: row["first"] for row in summary["refused"]} == reasons


def test_an_image_annotated_twice_is_read_once(write, tmp_path):
    summary = ingest(write(annotation(), annotation()), tmp_path / "out")
    assert summary["counts"]["train"]["stuff"] == 2
    (refused,) = summary["refused"]
    assert (refused["reason"], refused["count"]) == ("duplicate annotation id", 2)


def test_boxes_alone_need_no_png(write, tmp_path):
    write_png(tmp_path / "panoptic/a.png", np.zeros((9, 9), int))
    summary = ingest(write(annotation(), masks="none"), tmp_path / "out")
    assert summary["refused"] == []
    objects = Dataset(tmp_path / "out").objects
    assert objects["mask"].null_count == objects.num_rows
    assert objects["area"].to_pylist()[1:3] == [21.0, 21.0]


def test_a_folder_of_pngs_is_demanded_and_part_of_the_identity(write, tmp_path):
    config = write(annotation())
    before = config.foreign(DigestMemory())
    (tmp_path / "panoptic/stray.png").touch()
    assert config.foreign(DigestMemory()) == before
    write_png(tmp_path / "panoptic/a.png", SEGMENTS + 1)
    after = config.foreign(DigestMemory())
    assert after["train"] != before["train"]
    assert after["val"] == before["val"]
    (tmp_path / "panoptic").rename(tmp_path / "elsewhere")
    with pytest.raises(InvalidDataset, match="panoptic does not exist or is no folder"):
        config.foreign(DigestMemory())
