import json
import os
import zlib
from pathlib import Path

import duckdb
import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools.coco import COCO

from data.coco import stream as coco_stream
from data.errors import InvalidDataset
from data.ingest.ingestion import ingest
from data.ingest.options import IngestConfig, SplitConfig
from data.vocabulary.images import TOO_DEEP
from data.vocabulary.masks import decode_mask
from data.vocabulary.tables import BOX_COLUMNS, Dataset, box_array

SAMPLE = Path(__file__).parents[4] / "shared" / "coco-sample"


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
        ({"area": -1}, "area is not above 0, or infinite (box's taken)"),
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


def boxed(*boxes):
    """A document with these boxes."""
    first = document()["annotations"][0]
    return document(annotations=[first | {"id": i, "bbox": box} for i, box in enumerate(boxes)])


SHARE = [0.1, 0.5, 1, 0.25]
PIXELS = [0.5, 0.5, 1, 1.25]


def test_boxes_that_are_shares_of_the_image_are_refused(write, tmp_path):
    message = r"things of split train: .* shares of the image, 9 of 10 .* in pixels"
    with pytest.raises(InvalidDataset, match=message):
        ingest(write(boxed(*[SHARE] * 9, PIXELS)), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    ingest(write(boxed(*[SHARE] * 8, PIXELS, PIXELS)), tmp_path / "mixed")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    tiny = [document()["images"][0] | {"width": 4, "height": 4}]
    (tmp_path / "val.json").write_text(json.dumps(document(images=tiny)))
    ingest(write(boxed(SHARE) | {"images": tiny}), tmp_path / "tiny")


@pytest.mark.parametrize("beyond", [[4, 3, 8, 6], [100, 1, 4, 3]])
def test_boxes_that_may_be_corners_are_told(write, tmp_path, beyond):
    good = [1, 1, 4, 3]
    summary = ingest(write(boxed(beyond, beyond, good, good, good)), tmp_path / "out")
    told = summary["warnings"][0]
    assert "things of split train: 2 of 5 boxes" in told
    assert "corners, [x1, y1, x2, y2]" in told
    few = ingest(write(boxed(beyond, good, good)), tmp_path / "few")
    assert "be corners" not in str(few["warnings"])


@pytest.mark.parametrize(
    ("changes", "area"),
    [
        ({}, 12),
        ({"iscrowd": 1}, 12),
        ({"segmentation": [[1, 1, 4, 1, 4, 4, 1, 4]]}, 9),
        ({"segmentation": {"size": [6, 8], "counts": [48]}}, 12),  # of no pixel
    ],
)
def test_an_area_of_zero_is_the_masks_or_the_boxs(write, tmp_path, changes, area):
    """MMDetection leaves those of area 0 out of the training, and the evaluation counts them."""
    summary = ingest(write(document(annotations=annotations(area=0, **changes))), tmp_path / "out")
    rows = Dataset(tmp_path / "out").objects.filter(pc.field("split") == "train")
    assert rows["area"].to_pylist() == [12, area]
    assert [row["count"] for row in summary["refused"]] == [1]
    assert "taken)" in summary["refused"][0]["reason"]


def test_a_mask_of_no_pixel_says_nothing_of_the_area(write, tmp_path):
    empty = {"segmentation": {"size": [6, 8], "counts": [48]}}
    content = document(annotations=annotations(**empty, area=40))
    content["annotations"][0] |= empty
    del content["annotations"][0]["area"]
    summary = ingest(write(content), tmp_path / "out")
    rows = Dataset(tmp_path / "out").objects.filter(pc.field("split") == "train")
    assert rows["area"].to_pylist() == [12, 40]
    assert summary["refused"] == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"file_name": "missing.png"}, "image file missing"),
        ({"file_name": ""}, "image file missing"),
        ({"file_name": "A.PNG"}, "image file missing: there is one whose name differs in case"),
        ({"file_name": "a.PNG"}, "image file missing: there is one whose name differs in case"),
        (
            {"file_name": "sub\\a.png"},
            "image file missing: its name has \\, as on Windows; write / for it",
        ),
        ({"file_name": "sub\\b.png", "width": 9}, "size differs from the image file's"),
        (
            {"file_name": "../../etc/passwd"},
            "file name leaves the image folder: write names relative to it",
        ),
        (
            {"file_name": "sub/../../a.png"},
            "file name leaves the image folder: write names relative to it",
        ),
        (
            {"file_name": "/etc/passwd"},
            "file name leaves the image folder: write names relative to it",
        ),
        ({"file_name": "\ud800.png"}, "file name is not UTF-8"),
        ({"file_name": "a\0.png"}, "image file missing"),
        ({"file_name": "a" * 5000}, "image file unreadable"),
        ({"file_name": 5}, "image of another form: Expected `str`, got `int` - at `$.file_name`"),
        ({"file_name": "empty.png"}, "image file empty"),
        ({"file_name": "text.png"}, "image file unreadable"),
        ({"file_name": "half.png"}, "image file cut short or damaged"),
        ({"file_name": "floats.tif"}, TOO_DEEP),
        ({"file_name": "large.png"}, "size differs from the image file's"),
        ({"width": 0}, "image without area"),
        ({"height": -6}, "image without area"),
        ({"width": 10**5, "height": 10**5}, "image of gigantic size"),
        ({"file_name": "bomb.png"}, "image of gigantic size"),
        ({"id": 1, "file_name": "b.png"}, "duplicate image id"),
    ],
)
def test_a_broken_image_is_accounted_for(write, tmp_path, changes, reason):
    (tmp_path / "empty.png").touch()
    Image.new("RGB", (8, 6)).save(tmp_path / "sub\\b.png")
    (tmp_path / "text.png").write_text("no image")
    Image.new("RGB", (9, 6)).save(tmp_path / "large.png")
    Image.new("F", (8, 6)).save(tmp_path / "floats.tif")
    noise = np.random.default_rng(0).integers(0, 255, (6, 8, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "half.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "half.png").read_bytes()[:-40])
    header = bytearray((tmp_path / "a.png").read_bytes())
    header[16:24] = (10**5).to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    (tmp_path / "bomb.png").write_bytes(header)
    extra = {"id": 2, "file_name": "a.png", "width": 8, "height": 6} | changes
    content = document(images=[*document()["images"], extra])
    summary = ingest(write(content), tmp_path / "out", num_workers=2)
    assert [(row["reason"], row["count"]) for row in summary["refused"]] == [(reason, 1)]
    assert summary["counts"]["train"]["images"] == 1
    with pytest.raises(InvalidDataset, match="policy strict"):
        ingest(write(content, "strict"), tmp_path / "strict")
    assert not (tmp_path / "strict").exists()


@pytest.mark.parametrize("name", ["sub/b.png", "./sub/../sub/b.png", "{folder}/sub/b.png"])
def test_nested_and_absolute_names_inside_the_folder_are_legal(write, tmp_path, name):
    (tmp_path / "sub").mkdir()
    Image.new("RGB", (8, 6)).save(tmp_path / "sub" / "b.png")
    name = name.format(folder=tmp_path)
    picture = {"id": 1, "file_name": name, "width": 8.0, "height": 6}
    assert ingest(write(document(images=[picture])), tmp_path / "out")["refused"] == []
    ((_, path),) = Dataset(tmp_path / "out").image_paths("train")
    assert path.resolve() == tmp_path / "sub" / "b.png"


def test_whole_floats_extra_keys_any_order_and_no_info_are_legal(write, tmp_path):
    content = {
        "extra": [{"images": []}],
        "annotations": [
            {
                "area": 12,
                "bbox": [1, 1, 4, 3],
                "category_id": 3.0,
                "image_id": 1.0,
                "id": 12.0,
                "keypoints": [{"x": 1}],
                "iscrowd": False,
            }
        ],
        "categories": [{"keypoints": [], "name": "cat", "id": 3.0}],
        "images": [{"width": 8, "height": 6, "id": 1.0, "file_name": "a.png", "license": None}],
    }
    summary = ingest(write(content), tmp_path / "out")
    assert summary["refused"] == []
    rows = Dataset(tmp_path / "out").objects.filter(pc.field("split") == "train")
    assert rows["object_id"].to_pylist() == [12]


def test_images_that_two_splits_have_are_told(write, tmp_path):
    config = write(document())
    folder = tmp_path / os.fsdecode(b"n\xf6")  # no UTF-8
    folder.mkdir()
    Image.new("RGB", (8, 6)).save(folder / "a.png")
    spare = document(images=[document()["images"][0] | {"file_name": "./x/../a.png"}])
    (tmp_path / "spare.json").write_text(json.dumps(spare))
    (tmp_path / "link").symlink_to(tmp_path)
    apart = SplitConfig(instances=config.val.instances, images=folder)
    linked = SplitConfig(instances=tmp_path / "spare.json", images=tmp_path / "link")
    config = config.model_copy(update={"val": apart, "spare": linked})
    (told,) = ingest(config, tmp_path / "out")["warnings"]
    name = tmp_path.resolve() / "a.png"
    assert f"1 image files are in train and in spare too, such as {name}:" in told
    assert ingest(config.model_copy(update={"spare": None}), tmp_path / "none")["warnings"] == []


def test_images_in_the_lowest_bits_are_told(write, tmp_path):
    pixels = np.linspace(0, 4095, 48).reshape(6, 8)
    images = []
    for key, (name, array) in enumerate(
        {
            "12bit.png": pixels.astype(np.uint16),
            "12bit.tif": pixels.astype(np.uint16),
            "stretched.png": (16 * pixels).astype(np.uint16),
            "8bit.png": (pixels / 16).astype(np.uint8),
        }.items()
    ):
        Image.fromarray(array).save(tmp_path / name)
        images.append({"id": key + 1, "file_name": name, "width": 8, "height": 6})
    config = write(document(images=images))
    (told,) = ingest(config, tmp_path / "out")["warnings"]
    assert told.startswith(
        "2 images of split train use the lowest 12 of 16 bits and are seen nearly"
    )
    believed = config.model_copy(update={"check_images": False})
    assert ingest(believed, tmp_path / "believed")["warnings"] == []


def test_several_files_make_one_split(write, tmp_path):
    config = write(document())
    more = document(annotations=[document()["annotations"][0] | {"id": 2}])
    more["images"].append({"id": 5, "file_name": "b.png", "width": 8, "height": 6})
    Image.new("RGB", (8, 6)).save(tmp_path / "b.png")
    (tmp_path / "more.json").write_text(json.dumps(more))
    both = SplitConfig(instances=(tmp_path / "train.json", tmp_path / "more.json"), images=tmp_path)
    config = config.model_copy(update={"train": both})
    summary = ingest(config, tmp_path / "out")
    assert summary["refused"] == []
    assert summary["counts"]["train"] == {"images": 2, "things": 2, "crowds": 0, "stuff": 0}


def test_an_image_id_with_two_files_is_a_duplicate(write, tmp_path):
    config = write(document())
    picture = {"id": 1, "file_name": "b.png", "width": 8, "height": 6}
    (tmp_path / "more.json").write_text(json.dumps(document(images=[picture], annotations=[])))
    both = SplitConfig(instances=(tmp_path / "train.json", tmp_path / "more.json"), images=tmp_path)
    summary = ingest(config.model_copy(update={"train": both}), tmp_path / "out")
    assert [row["reason"] for row in summary["refused"]] == ["duplicate image id"]


def test_splits_without_a_common_class_are_refused(write, tmp_path):
    content = document(
        categories=[{"id": 4, "name": "dog"}],
        annotations=[document()["annotations"][0] | {"category_id": 4}],
    )
    with pytest.raises(InvalidDataset, match="no category id in common"):
        ingest(write(content), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"name": "d\ud800"}, "category name is not UTF-8"),
        ({"supercategory": "d\ud800"}, "category name is not UTF-8"),
        ({"name": ""}, "category without a name"),
        ({"name": " \n"}, "category without a name"),
    ],
)
def test_a_category_whose_name_is_no_name_is_accounted_for(write, tmp_path, changes, reason):
    other = {"id": 4, "name": "dog"} | changes
    summary = ingest(
        write(document(categories=[{"id": 3, "name": "cat"}, other])), tmp_path / "out"
    )
    assert [row["reason"] for row in summary["refused"]] == [reason]
    assert summary["categories"] == 1
    with pytest.raises(InvalidDataset, match=f"no usable object; 1 × {reason}"):
        ingest(write(document(categories=[other | {"id": 3}])), tmp_path / "none")


def test_stuff_needs_no_name(write, tmp_path):
    stuff = document(categories=[{"id": 9, "name": ""}])
    stuff["annotations"][0]["category_id"] = 9
    (tmp_path / "stuff.json").write_text(json.dumps(stuff))
    config = write(document())
    train = config.train.model_copy(update={"stuff": tmp_path / "stuff.json"})
    summary = ingest(config.model_copy(update={"train": train}), tmp_path / "out")
    assert (summary["refused"], summary["counts"]["train"]["stuff"]) == ([], 1)


def test_things_of_one_name_are_told(write, tmp_path):
    named = [{"id": key, "name": name} for key, name in enumerate(["cat", "dog", "cat", "cat"], 3)]
    told = ingest(write(document(categories=named)), tmp_path / "out")["warnings"]
    assert "things [3, 5, 6] are all called 'cat': prompts cannot tell them apart" in told
    assert "dog" not in str(told)


def test_a_category_twice_is_accounted_for(write, tmp_path):
    content = document(categories=[{"id": 3, "name": "cat"}, {"id": 3, "name": "dog"}])
    summary = ingest(write(content), tmp_path / "out")
    assert [row["reason"] for row in summary["refused"]] == ["duplicate category id"]


def test_every_annotation_is_the_same_with_any_number_of_workers(ingested, tmp_path, monkeypatch):
    folder = ingested / "scenes"
    monkeypatch.setattr(coco_stream, "CHUNK_BYTES", 4096)
    splits = {
        name: SplitConfig(
            instances=folder / f"annotations/instances_{name}.json",
            stuff=folder / f"annotations/stuff_{name}.json",
            images=folder / name,
        )
        for name in ("train", "val")
    }
    seen = []
    for workers in (1, 3):
        out = tmp_path / str(workers)
        ingest(IngestConfig(**splits), out, workers, lambda *report: seen.append(report))
        assert pq.read_table(out / "objects.parquet").equals(Dataset(ingested).objects)
    assert seen[-1] == (18, 18, "images")


def test_masks_can_be_left_out(ingested, tmp_path):
    folder = ingested / "scenes"
    split = SplitConfig(instances=folder / "annotations/instances_val.json", images=folder / "val")
    ingest(IngestConfig(train=split, val=split, masks="none"), tmp_path / "out")
    assert Dataset(tmp_path / "out").objects["mask"].null_count > 0


def test_tables_need_no_code_of_ours(ingested):
    for name in ("images", "objects", "categories"):
        schema = pq.read_schema(ingested / f"{name}.parquet")
        assert all(field.metadata[b"description"] for field in schema)
        measured = {"width", "height", "area", *BOX_COLUMNS} & set(schema.names)
        assert all(schema.field(name).metadata[b"unit"] for name in measured)
        metadata = pq.read_metadata(ingested / f"{name}.parquet")
        assert metadata.row_group(0).column(0).compression == "ZSTD"


def test_duckdb_runs_the_guides_query_on_the_tables(ingested, dataset, monkeypatch):
    guide = (Path(__file__).parents[3] / "docs" / "guide.md").read_text()
    query = guide.partition("```sql\n")[2].partition("```")[0]
    monkeypatch.chdir(ingested)
    rows = duckdb.sql(query).fetchall()
    val = dataset.objects.filter((pc.field("split") == "val") & ~pc.field("is_crowd"))
    assert sum(count for _, count, _ in rows) == val.num_rows


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"images": []}', '{"images": 3, "annotations": [], "categories": []}', "\xff"],
)
def test_a_file_of_another_kind_is_refused_by_name(write, tmp_path, content):
    with pytest.raises(InvalidDataset, match=r"train\.json"):
        ingest(write(content), tmp_path / "out")


def test_a_data_set_without_images_is_refused(write, tmp_path):
    with pytest.raises(InvalidDataset, match=r"no usable image$"):
        ingest(write(document(images=[], annotations=[])), tmp_path / "out")


def test_a_data_set_without_objects_is_refused_with_the_reason(write, tmp_path):
    crowd = document()["annotations"][0] | {"iscrowd": 1}
    for items, why in (
        ([], "no annotations"),
        ([crowd, crowd | {"id": 2}], "all 2 annotations are crowds"),
        ([crowd | {"image_id": 9}], r"1 × unknown or refused image \(train/1\)"),
    ):
        with pytest.raises(InvalidDataset, match=f"^split train has no usable object; {why}$"):
            ingest(write(document(annotations=items)), tmp_path / "out")


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
