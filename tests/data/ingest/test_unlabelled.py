"""Images without labels: what is found, what is refused, and what they are known by."""

import shutil

import mmcv
import numpy as np
import pytest
from PIL import Image

from data.artifacts.digests import DigestMemory
from data.errors import InvalidDataset
from data.ingest.options import UnlabelledConfig
from data.ingest.unlabelled import ingest_unlabelled
from data.vocabulary.images import TOO_DEEP
from data.vocabulary.tables import IMAGES, REFUSED, Dataset


@pytest.fixture
def folder(tmp_path):
    """Two usable images of odd kinds, five broken ones, and files that are no images."""
    root = tmp_path / "images"
    (root / "sub" / ".thumbnails").mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(root / "sub" / "turned.JPG", exif=exif)
    Image.fromarray(np.full((7, 9), 40_000, np.uint16)).save(root / "16bit.png")
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 3)).astype(np.uint8)
    Image.fromarray(noise).save(root / "cut.jpg")
    (root / "cut.jpg").write_bytes((root / "cut.jpg").read_bytes()[:-20])
    (root / "empty.png").touch()
    Image.new("I", (9, 7)).save(root / "long.tif")
    (root / "text.bmp").write_text("no image")
    (root / "gone.webp").symlink_to(root / "nowhere")
    for name in ("labels.json", ".hidden.png", "sub/.thumbnails/a.png"):
        (root / name).write_text("not looked at")
    (root / "folder.png").mkdir()
    return root


def config_of(*folders):
    return UnlabelledConfig(folders=folders)


def ingested(config, out, num_workers=1):
    out.mkdir()
    reports = []
    summary = ingest_unlabelled(config, out, num_workers, lambda *report: reports.append(report))
    config.note_places(out)
    return Dataset(out), summary, reports


@pytest.mark.parametrize("num_workers", [1, 2])
def test_usable_images_are_listed_as_they_are_shown_and_others_by_reason(
    folder, tmp_path, num_workers
):
    dataset, summary, reports = ingested(config_of(folder), tmp_path / "out", num_workers)
    assert dataset.images.schema == IMAGES
    assert dataset.refused.schema == REFUSED
    rows = dataset.split_images("unlabelled")
    assert [(row["image_id"], row["file_name"]) for row in rows] == [
        (1, "16bit.png"), (6, "sub/turned.JPG"),
    ]  # fmt: skip
    for row, (_, path) in zip(rows, dataset.image_paths("unlabelled"), strict=True):
        assert mmcv.imread(str(path)).shape[:2] == (row["height"], row["width"])
    assert {row["record"]: row["reason"] for row in dataset.refused.to_pylist()} == {
        "unlabelled/cut.jpg": "image file cut short or damaged",
        "unlabelled/empty.png": "image file empty",
        "unlabelled/gone.webp": "image file missing",
        "unlabelled/long.tif": TOO_DEEP,
        "unlabelled/text.bmp": "image file unreadable",
    }
    assert summary["images"] == 2
    assert sum(row["count"] for row in summary["refused"]) == 5
    assert reports[-1] == (7, 7, "images")


def test_what_is_to_judge_is_left_out_by_its_content(folder, tmp_path):
    held_out = [tmp_path / "val.png", tmp_path / "same size.png", tmp_path / "nowhere.png"]
    shutil.copyfile(folder / "16bit.png", held_out[0])
    content = bytearray((folder / "sub" / "turned.JPG").read_bytes())
    content[-3] ^= 1
    held_out[1].write_bytes(content)
    out = tmp_path / "out"
    out.mkdir()
    summary = ingest_unlabelled(config_of(folder), out, held_out=held_out)
    rows = Dataset(out).split_images("unlabelled")
    assert [(row["image_id"], row["file_name"]) for row in rows] == [(6, "sub/turned.JPG")]
    assert summary["refused"][0] == {
        "reason": "a validation image", "count": 1, "first": "unlabelled/16bit.png",
    }  # fmt: skip


def test_several_folders_are_one_data_set_whatever_their_order(folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(folder / "sub", other)
    both, _, _ = ingested(config_of(other, folder, folder), tmp_path / "out")
    names = [row["file_name"] for row in both.split_images("unlabelled")]
    assert names == ["images/16bit.png", "images/sub/turned.JPG", "other/turned.JPG"]
    assert all(path.is_file() for _, path in both.image_paths("unlabelled"))
    again, _, _ = ingested(config_of(folder, other), tmp_path / "again")
    assert again.images == both.images


def test_images_are_known_by_their_content(folder, tmp_path):
    before = config_of(folder).foreign(DigestMemory())
    assert config_of(folder).keyed(before) == UnlabelledConfig().keyed(before)
    (folder / "labels.json").write_text("changed")
    shutil.move(folder, tmp_path / "moved")
    moved = config_of(tmp_path / "moved")
    assert moved.foreign(DigestMemory()) == before
    (tmp_path / "moved" / "text.bmp").write_text("changed")
    assert moved.foreign(DigestMemory()) != before


def test_folders_without_images_are_refused_by_name(folder, tmp_path):
    empty, broken = tmp_path / "empty", tmp_path / "broken"
    empty.mkdir()
    broken.mkdir()
    (broken / "a.png").write_text("no image")
    with pytest.raises(InvalidDataset, match=r"nowhere does not exist.*ingest\.unlabelled"):
        config_of(folder, tmp_path / "nowhere").foreign(DigestMemory())
    with pytest.raises(InvalidDataset, match=r"empty has no image file.*ingest\.unlabelled"):
        config_of(folder, empty).foreign(DigestMemory())
    with pytest.raises(
        InvalidDataset, match=r"broken \(ingest\.unlabelled\): no usable image; 1 × image file unr"
    ):
        ingested(config_of(broken), tmp_path / "out")


def test_scenes_without_labels_are_pictures_of_their_own(dataset, tmp_path):
    found, summary, _ = ingested(UnlabelledConfig(num_scenes=8), tmp_path / "out")
    assert summary == {"images": 8, "refused": []}
    pictures = {path.read_bytes() for _, path in found.image_paths("unlabelled")}
    known = {p.read_bytes() for name in ("train", "val") for _, p in dataset.image_paths(name)}
    assert len(pictures) == 8
    assert not pictures & known
    few, _, _ = ingested(UnlabelledConfig(num_scenes=3), tmp_path / "few", num_workers=2)
    assert {path.read_bytes() for _, path in few.image_paths("unlabelled")} < pictures
    shutil.move(found.folder, tmp_path / "moved")
    assert all(path.is_file() for _, path in Dataset(tmp_path / "moved").image_paths("unlabelled"))
