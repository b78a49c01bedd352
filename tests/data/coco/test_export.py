import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pycocotools.coco import COCO

from data.coco.export import export_boxes, export_objects
from data.ingest.ingestion import ingest
from data.ingest.options import IngestConfig, SplitConfig

WIDTH, HEIGHT = 60, 50
coordinates = st.integers(0, 40 * 100).map(lambda value: value / 100)
sides = st.integers(1, 9 * 10**6).map(lambda value: value / 10**6)


SMALL = {
    "image_id": 1,
    "category_id": 3,
    "bbox": [3.31, 7.49, 0.19, 0.01],
    "area": 0.0019,
    "iscrowd": 0,
}
"""Less than a pixel, of which its mask has one."""


@st.composite
def annotation(draw):
    x, y, width, height = draw(coordinates), draw(coordinates), draw(sides), draw(sides)
    polygon = [x, y, x + width, y, x + width, y + height, x, y + height]
    runs = [7, 5, WIDTH * HEIGHT - 12]
    masks = [None, [], [polygon], [polygon, polygon], {"size": [HEIGHT, WIDTH], "counts": runs}]
    crowd = draw(st.booleans())
    return {
        "image_id": draw(st.integers(1, 3)),
        "category_id": draw(st.sampled_from([3, 90])),
        "bbox": draw(st.permutations([[x, y, width, height]]))[0],
        "area": width * height,
        "iscrowd": int(crowd),
        "segmentation": draw(st.sampled_from(masks[:4])) if not crowd else masks[4],
    }


def document(records):
    fixed = {"image_id": 1, "category_id": 3, "bbox": [1, 1, 4, 3], "area": 12, "iscrowd": 0}
    return {
        "images": [
            {"id": key, "file_name": f"{key}.jpg", "width": WIDTH, "height": HEIGHT}
            for key in (3, 1, 2)
        ],
        "annotations": [{"id": 7 * i + 5, **item} for i, item in enumerate([fixed, *records])],
        "categories": [
            {"id": 3, "name": "cat", "supercategory": "animal"},
            {"id": 90, "name": "dög", "supercategory": ""},
        ],
    }


@given(records=st.lists(annotation(), max_size=6))
@example(records=[{**SMALL, "segmentation": [[3.31, 7.49, 3.5, 7.49, 3.5, 7.5, 3.31, 7.5]]}])
def test_files_come_back_from_the_tables_unchanged(tmp_path_factory, records):
    folder = tmp_path_factory.mktemp("round")
    (folder / "a.json").write_text(json.dumps(document(records)))
    split = SplitConfig(instances=folder / "a.json", images=folder)
    summary = ingest(IngestConfig(train=split, val=split, check_images=False), folder / "out")
    assert summary["refused"] == []
    export_objects(folder / "out", "train", folder / "back.json")
    export_boxes(folder / "out", "train", folder / "boxes.json")
    given, back, boxes = (
        COCO(str(folder / name)) for name in ("a.json", "back.json", "boxes.json")
    )
    assert back.dataset["images"] == given.dataset["images"]
    assert back.dataset["categories"] == given.dataset["categories"]
    for mine, bare, theirs in zip(
        *(c.dataset["annotations"] for c in (back, boxes, given)), strict=True
    ):
        for key in ("id", "image_id", "category_id", "bbox", "area", "iscrowd"):
            assert mine[key] == bare[key] == theirs[key]
        if theirs.get("segmentation"):
            assert mine["segmentation"]["counts"].encode() == given.annToRLE(theirs)["counts"]
        else:
            x, y, width, height = theirs["bbox"]
            corners = [x, y, x + width, y, x + width, y + height, x, y + height]
            assert mine["segmentation"] == [pytest.approx(corners)]


def test_objects_without_a_mask_are_their_box(tmp_path):
    crowd = {**SMALL, "iscrowd": 1}
    whole = {"size": [HEIGHT, WIDTH], "counts": [0, WIDTH * HEIGHT]}
    masked = {**crowd, "bbox": [0, 0, WIDTH, HEIGHT], "area": WIDTH * HEIGHT, "segmentation": whole}
    (tmp_path / "a.json").write_text(json.dumps(document([crowd, masked])))
    split = SplitConfig(instances=tmp_path / "a.json", images=tmp_path)
    ingest(IngestConfig(train=split, val=split, check_images=False), tmp_path / "out")
    export_objects(tmp_path / "out", "train", tmp_path / "back.json")
    back = json.loads((tmp_path / "back.json").read_text())["annotations"]
    assert back[0]["segmentation"] == [[1, 1, 5, 1, 5, 4, 1, 4]]
    assert back[1]["segmentation"] == [pytest.approx([3.31, 7.49, 3.5, 7.49, 3.5, 7.5, 3.31, 7.5])]
    assert back[2]["segmentation"]["size"] == [HEIGHT, WIDTH]


def test_scenes_difficulty_comes_back(ingested, tmp_path):
    export_objects(ingested, "val", tmp_path / "back.json")
    back = json.loads((tmp_path / "back.json").read_text())["annotations"]
    source = ingested / "scenes/annotations/instances_val.json"
    assert back == [
        {**item, "area": pytest.approx(item["area"])}
        for item in json.loads(source.read_text())["annotations"]
    ]
