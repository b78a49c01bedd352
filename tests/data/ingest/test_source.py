"""The identity of a user's data set: content, wherever it lies."""

import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from data.artifacts.digests import DigestMemory
from data.errors import ArtifactMissing, InvalidDataset
from data.ingest.ingestion import ingest
from data.ingest.options import IngestConfig, SplitConfig
from data.vocabulary.tables import Dataset


def document(*names):
    images = [
        {"id": number, "file_name": name, "width": 8, "height": 6}
        for number, name in enumerate(names)
    ]
    box = {"bbox": [1, 1, 4, 3], "area": 12, "iscrowd": 0, "category_id": 3}
    annotations = [{"id": item["id"] + 1, "image_id": item["id"], **box} for item in images]
    categories = [{"id": 3, "name": "cat"}]
    return {"images": images, "annotations": annotations, "categories": categories}


@pytest.fixture
def folder(tmp_path):
    """A data set: two training images, the second in a folder, and one for validation."""
    root = tmp_path / "set"
    (root / "images" / "sub").mkdir(parents=True)
    for number, name in enumerate(("a.png", "sub/b.png", "c.png")):
        Image.new("RGB", (8, 6), (number, 0, 0)).save(root / "images" / name)
    (root / "train.json").write_text(json.dumps(document("a.png", "sub/b.png")))
    (root / "val.json").write_text(json.dumps(document("c.png")))
    return root


def config_of(root):
    return IngestConfig(
        **{
            name: SplitConfig(instances=root / f"{name}.json", images=root / "images")
            for name in ("train", "val")
        }
    )


def digests_of(root, memory=None):
    return config_of(root).foreign(memory or DigestMemory())


def test_a_touched_renamed_or_moved_data_set_is_the_same(folder, tmp_path, monkeypatch):
    before = digests_of(folder)
    os.utime(folder / "images" / "a.png", (1, 1))
    assert digests_of(folder) == before
    shutil.move(folder, tmp_path / "moved")
    assert digests_of(tmp_path / "moved") == before
    monkeypatch.chdir(tmp_path)
    relative = IngestConfig(
        train=SplitConfig(instances="moved/train.json", images="moved/images"),
        val=SplitConfig(instances="moved/val.json", images="./moved/../moved/images"),
    )
    assert relative.foreign(DigestMemory()) == before
    keyed = [item.keyed(before) for item in (relative, config_of(tmp_path / "moved"))]
    assert keyed[0] == keyed[1]


def test_a_stray_file_changes_nothing(folder):
    before = digests_of(folder)
    (folder / "images" / ".DS_Store").write_text("x")
    Image.new("RGB", (8, 6)).save(folder / "images" / "z.png")
    assert digests_of(folder) == before


def test_an_image_overwritten_at_equal_size_changes_its_split_alone(folder):
    with DigestMemory(folder) as memory:
        before = digests_of(folder, memory)
    path = folder / "images" / "sub" / "b.png"
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    with DigestMemory(folder) as memory:
        after = digests_of(folder, memory)
    assert after["train"] != before["train"]
    assert after["val"] == before["val"]


@pytest.mark.parametrize("change", ["missing", "annotation", "name"])
def test_what_the_annotations_name_is_part_of_it(folder, change):
    before = digests_of(folder)
    match change:
        case "missing":
            (folder / "images" / "a.png").unlink()
        case "annotation":
            text = (folder / "train.json").read_text()
            (folder / "train.json").write_text(text.replace("12", "11", 1))
        case "name":
            (folder / "images" / "a.png").rename(folder / "images" / "A.png")
            text = (folder / "train.json").read_text()
            (folder / "train.json").write_text(text.replace("a.png", "A.png"))
    assert digests_of(folder)["train"] != before["train"]


def test_things_and_stuff_are_told_apart(folder):
    one, two = folder / "train.json", folder / "val.json"

    def digest(**files):
        split = SplitConfig(images=folder / "images", **files)
        return IngestConfig(train=split, val=split).foreign(DigestMemory())

    assert digest(instances=(one, two)) != digest(instances=one, stuff=two)
    assert digest(instances=one, stuff=two) != digest(instances=two, stuff=one)


def test_a_name_that_is_not_utf_8_can_be_remembered(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path / "name") + b"\xff"))
    path.write_text("x")
    os.utime(path, (1, 1))
    for _ in range(2):
        with DigestMemory(tmp_path) as memory:
            assert memory.file(path)


def test_broken_names_do_not_stop_the_digest(folder):
    content = document("a.png", "../../outside.png", "nul\0.png", "", "." * 300)
    (folder / "train.json").write_text(json.dumps(content))
    (folder / "images" / "b.png").symlink_to(folder / "nowhere")
    assert digests_of(folder)


def test_categories_are_known_before_anything_is_ingested(folder):
    assert config_of(folder).thing_names(DigestMemory()) == {"cat"}
    assert "kite" in IngestConfig().thing_names(DigestMemory())


def test_what_is_not_there_is_named(folder):
    with pytest.raises(InvalidDataset, match=r"ingest\.val"):
        IngestConfig(train=config_of(folder).train).foreign(DigestMemory())
    (folder / "val.json").write_text("{")
    with pytest.raises(InvalidDataset, match=r"val\.json is not a COCO file"):
        digests_of(folder)
    (folder / "val.json").unlink()
    with pytest.raises(InvalidDataset, match=r"val\.json does not exist"):
        digests_of(folder)


def test_a_moved_data_set_is_found_where_it_lies_now(folder, tmp_path):
    out = tmp_path / "tables"
    ingest(config_of(folder), out)
    before = Dataset(out).image_paths("train")
    assert all(path.is_file() for _, path in before)
    shutil.move(folder, tmp_path / "moved")
    config_of(tmp_path / "moved").note_places(out)
    assert all(path.is_file() for _, path in Dataset(out).image_paths("train"))
    (tmp_path / "tables.places.json").unlink()
    with pytest.raises(ArtifactMissing, match="run the stage ingest"):
        Dataset(out).image_paths("train")
