import json
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
from PIL import Image
from pycocotools.coco import COCO

from data.errors import InvalidDataset
from data.ingest import IngestConfig, SplitConfig, ingest, source_digest
from data.masks import decode_mask
from data.tables import Dataset, box_array

SAMPLE = Path(__file__).parents[3] / "shared" / "coco-sample"


def document(**changes):
    return {
        "images": [{"id": 1, "file_name": "a.png", "width": 8, "height": 6}],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 3,
                "bbox": [1, 1, 4, 3],
                "area": 12,
                "iscrowd": 0,
            }
        ],
        "categories": [{"id": 3, "name": "cat"}],
    } | changes


@pytest.fixture
def write(tmp_path):
    """Write a train and a val split with the given training document; returns its config."""
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    (tmp_path / "val.json").write_text(json.dumps(document()))

    def make(content, policy="report"):
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / "train.json").write_text(text)
        splits = {
            name: SplitConfig(instances=tmp_path / f"{name}.json", images=tmp_path)
            for name in ("train", "val")
        }
        return IngestConfig(**splits, policy=policy)

    return make


def annotations(**changes):
    return [document()["annotations"][0], document()["annotations"][0] | {"id": 2} | changes]


def test_a_box_only_data_set_is_legal(write, tmp_path):
    summary = ingest(write(document()), tmp_path / "out")
    assert summary["counts"]["train"] == {"images": 1, "things": 1, "crowds": 0, "stuff": 0}
    objects = Dataset(tmp_path / "out").objects
    assert objects["mask"].to_pylist() == [None, None]
    assert box_array(objects)[0].tolist() == [1, 1, 5, 4]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"id": 1}, "duplicate annotation id"),
        ({"category_id": 99}, "unknown category"),
        ({"image_id": 99}, "unknown or refused image"),
        ({"bbox": [1, 1, 0, 3]}, "box without area"),
        ({"bbox": [1, 1, -4, 3]}, "box without area"),
        ({"bbox": [100, 1, 4, 3]}, "box outside the image"),
        ({"bbox": [5, 1, 4.5, 3]}, "box reaches out of the image (clipped)"),
        ({"bbox": [float("nan"), 1, 4, 3]}, "box is not finite"),
        ({"bbox": [1, 1, float("inf"), 3]}, "box is not finite"),
        (
            {"bbox": [1, 1, 4]},
            "annotation of another form: Expected `array` of length 4, got 3 - at `$.bbox`",
        ),
        ({"bbox": None}, "annotation of another form: Expected `array`, got `null` - at `$.bbox`"),
        ({"id": "x"}, "annotation of another form: Expected `int`, got `str` - at `$.id`"),
        (
            {"segmentation": [[0, 0, 4, 0, 4, 3, 0, 3]], "area": 99},
            "area differs from the mask's (mask's taken)",
        ),
        ({"segmentation": [[0, 0, 4, 0, 1e300, 3]]}, "broken mask (box kept)"),
        ({"segmentation": [[1]]}, "broken mask (box kept)"),
        ({"segmentation": {"size": [6, 8], "counts": "Pf4"}}, "broken mask (box kept)"),
        ({"segmentation": {"size": [6, 9], "counts": [54]}}, "broken mask (box kept)"),
    ],
)
def test_a_broken_annotation_is_accounted_for(write, tmp_path, changes, reason):
    content = document(annotations=annotations(**changes))
    summary = ingest(write(content), tmp_path / "out")
    assert [(row["reason"], row["count"]) for row in summary["refused"]] == [(reason, 1)]
    with pytest.raises(InvalidDataset, match="policy strict"):
        ingest(write(content, "strict"), tmp_path / "strict")


@pytest.mark.parametrize(
    ("file_name", "reason"),
    [
        ("missing.png", "image file missing"),
        ("../../etc/passwd", "file name leaves the image folder"),
        ("empty.png", "image file empty"),
        ("text.png", "image file unreadable"),
        ("large.png", "size differs from the image file's"),
    ],
)
def test_a_broken_image_is_accounted_for(write, tmp_path, file_name, reason):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no image")
    Image.new("RGB", (9, 6)).save(tmp_path / "large.png")
    extra = {"id": 2, "file_name": file_name, "width": 8, "height": 6}
    summary = ingest(write(document(images=[*document()["images"], extra])), tmp_path / "out")
    assert [(row["reason"], row["count"]) for row in summary["refused"]] == [(reason, 1)]


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"images": []}', '{"images": 3, "annotations": [], "categories": []}', "\xff"],
)
def test_a_file_of_another_kind_is_refused_by_name(write, tmp_path, content):
    with pytest.raises(InvalidDataset, match=r"train\.json"):
        ingest(write(content), tmp_path / "out")


def test_a_data_set_without_images_is_refused(write, tmp_path):
    with pytest.raises(InvalidDataset, match="no usable image"):
        ingest(write(document(images=[], annotations=[])), tmp_path / "out")


def test_categories_in_any_order_keep_their_labels(write, tmp_path):
    categories = [{"id": 9, "name": "dog"}, {"id": 3, "name": "cat"}]
    ingest(write(document(categories=categories)), tmp_path / "out")
    dataset = Dataset(tmp_path / "out")
    written = json.loads(dataset.instances_file("train").read_text())["categories"]
    assert {item["id"]: item["name"] for item in written} == dataset.things
    assert [item["id"] for item in written] == list(dataset.things) == [3, 9]


def test_an_id_with_two_meanings_is_refused(write, tmp_path):
    with pytest.raises(InvalidDataset, match="category 3 is 'cat' here and the thing 'dog'"):
        ingest(write(document(categories=[{"id": 3, "name": "dog"}])), tmp_path / "out")


def test_images_may_be_links(write, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "a.png").rename(tmp_path / "elsewhere" / "a.png")
    (tmp_path / "a.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    assert ingest(write(document()), tmp_path / "out")["refused"] == []


def test_a_link_to_nowhere_is_one_clear_error(write, tmp_path):
    config = write(document())
    (tmp_path / "b.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InvalidDataset, match=r"b\.png cannot be read"):
        source_digest(config)


def test_one_split_alone_is_refused(write):
    config = IngestConfig(train=write(document()).train)
    with pytest.raises(InvalidDataset, match=r"ingest\.val"):
        source_digest(config)


def test_the_digest_follows_the_files(write, tmp_path):
    first = source_digest(write(document()))
    assert source_digest(write(document())) == first
    assert source_digest(write(document(annotations=[]))) != first
    (tmp_path / "b.png").touch()
    assert source_digest(write(document())) != first


def test_scenes_come_back_from_the_tables(dataset):
    coco = COCO(str(dataset.folder / "scenes/annotations/instances_train.json"))
    rows = dataset.objects.filter(pc.field("is_thing") & (pc.field("split") == "train"))
    assert rows.num_rows == len(coco.anns)
    for row in rows.to_pylist():
        item = coco.anns[row["object_id"]]
        x, y, width, height = item["bbox"]
        assert (row["x_min"], row["y_min"]) == (x, y)
        assert (row["x_max"], row["y_max"]) == (x + width, y + height)
        assert (decode_mask(row["mask"], 64, 64) == coco.annToMask(item)).all()


@pytest.mark.skipif(not SAMPLE.exists(), reason="the COCO sample is not here")
def test_real_coco_files_are_ingested_with_pycocotools_counts(tmp_path):
    splits = {
        name: SplitConfig(
            instances=SAMPLE / f"annotations/instances_{name}2017.json",
            images=SAMPLE / f"{name}2017",
        )
        for name in ("train", "val")
    }
    summary = ingest(IngestConfig(**splits), tmp_path / "out")
    assert summary["refused"] == []
    dataset = Dataset(tmp_path / "out")
    for name, split in splits.items():
        coco = COCO(str(split.instances))
        rows = dataset.objects.filter(pc.field("split") == name)
        counts = summary["counts"][name]
        assert (counts["images"], counts["things"]) == (len(coco.imgs), len(coco.anns))
        assert counts["crowds"] == sum(item["iscrowd"] for item in coco.anns.values())
        for row in rows.to_pylist()[::40]:
            image = coco.imgs[row["image_id"]]
            mask = decode_mask(row["mask"], image["height"], image["width"])
            np.testing.assert_array_equal(mask, coco.annToMask(coco.anns[row["object_id"]]))
