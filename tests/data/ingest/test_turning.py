import json

import numpy as np
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from data.errors import InvalidDataset
from data.ingest.ingestion import ingest
from data.ingest.options import IngestConfig, SplitConfig, TileConfig
from data.ingest.turning import turn_boxes, turn_mask
from data.vocabulary.boxes import mask_to_box
from data.vocabulary.images import read_rgb
from data.vocabulary.masks import decode_mask, encode_mask
from data.vocabulary.tables import Dataset, box_array

ORIENTATIONS = range(1, 9)
WIDTH, HEIGHT = 24, 16
BRIGHT = 255


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def shown(pixels, orientation):
    """An array as Pillow turns it."""
    image = Image.fromarray(pixels)
    image.getexif()[0x0112] = orientation
    return np.asarray(ImageOps.exif_transpose(image))


@given(st.data(), st.sampled_from(ORIENTATIONS))
def test_boxes_and_masks_are_turned_as_pillow_turns_images(data, orientation):
    height, width = (data.draw(st.integers(1, 12)) for _ in range(2))
    flat = data.draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width))
    mask = np.array(flat).reshape(height, width)
    turned = shown(mask.astype(np.uint8), orientation).astype(bool)
    counts = turn_mask(encode_mask(mask)["counts"], height, width, orientation)
    np.testing.assert_array_equal(decode_mask(counts, *turned.shape), turned)
    if mask.any():
        box, sizes = mask_to_box(mask)[None], np.array([[height, width]])
        (found,) = turn_boxes(box, sizes, np.array([orientation]))
        np.testing.assert_array_equal(found, mask_to_box(turned))


def drawn(seed):
    """A picture, and the mask of a bright thing in it that fills a box but for a corner."""
    rng = np.random.default_rng(seed)
    picture = rng.integers(0, BRIGHT, (HEIGHT, WIDTH, 3), np.uint8)
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[2:7, 3 : 12 + seed] = True
    mask[5:7, 3:5] = False
    picture[mask] = BRIGHT
    return picture, mask


def polygon(mask):
    left, top, right, bottom = mask_to_box(mask).tolist()
    return [[left, top, right, top, right, bottom, 5, bottom, 5, 5, left, 5]]


def uncompressed(mask):
    flat = mask.flatten(order="F")
    starts = np.flatnonzero(np.diff(flat)) + 1
    return {"size": list(mask.shape), "counts": np.diff([0, *starts, flat.size]).tolist()}


SEGMENTATIONS = {"polygons": polygon, "RLE": encode_mask, "uncompressed": uncompressed,
                 "none": lambda _: []}  # fmt: skip


def write(folder, segmentation, *, is_stored, suffix="jpg"):
    """An image of each orientation with a thing, annotated as it is stored or as it is shown."""
    folder.mkdir()
    images, annotations = [], []
    for key in ORIENTATIONS:
        picture, mask = drawn(key)
        name = f"{key}.{suffix}"
        Image.fromarray(picture).save(folder / name, exif=exif(key), quality=95)
        if not is_stored:
            mask = shown(mask.astype(np.uint8), key).astype(bool)
        left, top, right, bottom = mask_to_box(mask).tolist()
        size = {"height": mask.shape[0], "width": mask.shape[1]}
        images.append({"id": key, "file_name": name, **size})
        annotations.append({"id": key, "image_id": key, "category_id": 1,
                            "bbox": [left, top, right - left, bottom - top],
                            "segmentation": segmentation(mask)})  # fmt: skip
    document = {"images": images, "annotations": annotations,
                "categories": [{"id": 1, "name": "thing"}]}  # fmt: skip
    (folder / "a.json").write_text(json.dumps(document))
    return SplitConfig(instances=folder / "a.json", images=folder)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("kind", SEGMENTATIONS)
def test_annotations_of_stored_images_are_read_as_those_of_shown_ones(tmp_path, kind, suffix):
    of_shown = encode_mask if kind != "none" else SEGMENTATIONS[kind]
    split = write(tmp_path / "stored", SEGMENTATIONS[kind], is_stored=True, suffix=suffix)
    same = write(tmp_path / "shown", of_shown, is_stored=False, suffix=suffix)
    stored = ingest(IngestConfig(train=split, val=split, exif="stored"), tmp_path / "a")
    expected = ingest(IngestConfig(train=same, val=same), tmp_path / "b")
    assert stored["refused"] == expected["refused"] == []
    assert stored["counts"] == expected["counts"]
    for found, wanted in zip(*(map(Dataset(tmp_path / name).__getattribute__, ("images", "objects"))
                               for name in "ab"), strict=True):  # fmt: skip
        assert found.equals(wanted)


@pytest.mark.parametrize("tile", [None, TileConfig(size=16, min_visible=0.1)])
def test_masks_and_boxes_lie_on_what_is_read(tmp_path, tile):
    split = write(tmp_path / "stored", encode_mask, is_stored=True, suffix="png")
    ingest(IngestConfig(train=split, val=split, exif="stored", tile=tile), tmp_path / "out")
    dataset = Dataset(tmp_path / "out")
    paths = dict(dataset.image_paths("train"))
    objects = dataset.objects.filter(pc.field("split") == "train")
    assert objects.num_rows >= 8
    for row, box in zip(objects.to_pylist(), box_array(objects), strict=True):
        is_thing = np.asarray(read_rgb(paths[row["image_id"]]))[..., 0] == BRIGHT
        np.testing.assert_array_equal(decode_mask(row["mask"], *is_thing.shape), is_thing)
        np.testing.assert_array_equal(box, mask_to_box(is_thing))


def test_clipping_and_areas_are_of_the_stored_image(tmp_path):
    split = write(tmp_path / "stored", lambda _: [], is_stored=True)
    document = json.loads((tmp_path / "stored/a.json").read_text())
    for item in document["annotations"]:
        item["bbox"] = [
            WIDTH - 6,
            2,
            10,
            3,
        ]  # reaches out by 4 pixels, on the right as it is stored
    (tmp_path / "stored/a.json").write_text(json.dumps(document))
    summary = ingest(IngestConfig(train=split, val=split, exif="stored"), tmp_path / "out")
    reasons = {(row["reason"], row["count"]) for row in summary["refused"]}
    assert reasons == {("box reaches out of the image (clipped)", 16)}
    assert set(Dataset(tmp_path / "out").objects["area"].to_pylist()) == {18.0}


@pytest.mark.parametrize(("exif_mode", "other"), [("shown", "stored"), ("stored", "shown")])
def test_annotations_of_the_other_reading_are_told(tmp_path, exif_mode, other):
    split = write(tmp_path / "a", encode_mask, is_stored=other == "stored")
    summary = ingest(IngestConfig(train=split, val=split, exif=exif_mode), tmp_path / "out")
    assert (
        f'8 images are annotated as they are {other}: ingest.exif = "{other}"'
        in summary["warnings"][0]
    )
    assert [row["count"] for row in summary["refused"] if "EXIF" in row["reason"]] == [8]


def test_where_no_image_is_left_the_other_reading_is_named(tmp_path):
    split = write(tmp_path / "a", encode_mask, is_stored=True)
    document = json.loads((tmp_path / "a/a.json").read_text())
    document["images"] = document["images"][4:]
    (tmp_path / "a/a.json").write_text(json.dumps(document))
    with pytest.raises(InvalidDataset, match=r'no usable image.*ingest\.exif = "stored"'):
        ingest(IngestConfig(train=split, val=split), tmp_path / "out")


def test_files_that_are_not_looked_at_do_not_say_how_they_turn():
    with pytest.raises(ValueError, match="exif stored needs check_images"):
        IngestConfig(exif="stored", check_images=False)
