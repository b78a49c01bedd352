import filecmp
import json

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO

from data.errors import InvalidConfig, InvalidDataset
from data.ingest.ingestion import ingest
from data.ingest.options import IngestConfig, ScenesConfig, SplitConfig, TileConfig
from data.ingest.tiles import tile_boxes, visible_part
from data.vocabulary.boxes import mask_to_box
from data.vocabulary.masks import decode_mask
from data.vocabulary.tables import Dataset, box_array

SIDES = st.integers(1, 90)


@given(SIDES, SIDES, st.integers(1, 60), st.floats(0, 0.95))
def test_tiles_cover_the_image_have_full_size_and_overlap(width, height, size, overlap):
    tiles = tile_boxes(width, height, size=size, overlap=overlap)
    seen = np.zeros((height, width), int)
    for left, top, right, bottom in tiles:
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        assert (right - left, bottom - top) == (min(size, width), min(size, height))
        seen[top:bottom, left:right] += 1
    assert seen.all()
    assert len(np.unique(tiles, axis=0)) == len(tiles)
    least = min(round(size * overlap), size - 1)
    for edges, side in ((tiles[:, 0], width), (tiles[:, 1], height)):
        steps = np.diff(np.unique(edges))
        assert (steps <= size - least + 1).all()  # half a pixel is rounded
        assert len(steps) == 0 or side > size


@st.composite
def objects(draw):
    """A box in an image of 12 × 9 pixels, a mask of some of its pixels, and a tile."""

    def interval(length):
        ends = st.lists(st.integers(0, length), min_size=2, max_size=2, unique=True)
        return sorted(draw(ends))

    (left, right), (top, bottom) = interval(12), interval(9)
    mask = np.zeros((9, 12), bool)
    bits = draw(st.lists(st.booleans(), min_size=108, max_size=108))
    inside = np.reshape(bits, (9, 12))[top:bottom, left:right]
    mask[top:bottom, left:right] = inside
    (x_min, x_max), (y_min, y_max) = interval(12), interval(9)
    return (
        np.array([left, top, right, bottom], float),
        mask if mask.any() else None,
        np.array([x_min, y_min, x_max, y_max]),
    )


@given(objects())
def test_a_part_is_what_a_loop_over_pixels_finds(found):
    box, mask, tile = found
    whole = [(x, y) for x in range(12) for y in range(9)
             if (mask[y, x] if mask is not None
                 else box[0] <= x < box[2] and box[1] <= y < box[3])]  # fmt: skip
    shown = [(x - tile[0], y - tile[1]) for x, y in whole
             if tile[0] <= x < tile[2] and tile[1] <= y < tile[3]]  # fmt: skip
    part = visible_part(box, float(len(whole)), mask, tile)
    if not shown:
        assert part is None
        return
    assert part.share == pytest.approx(len(shown) / len(whole))
    assert part.area == pytest.approx(len(shown))
    columns, rows = zip(*shown, strict=True)
    tight = [min(columns), min(rows), max(columns) + 1, max(rows) + 1]
    if mask is None:
        assert part.mask is None
        assert part.box.tolist() == tight
        return
    size = (tile[3] - tile[1], tile[2] - tile[0])
    assert {(x, y) for y, x in np.argwhere(decode_mask(part.mask, *size))} == set(shown)
    if len(shown) < len(whole):
        assert part.box.tolist() == tight
    else:  # the file's own box stays, what lies beyond the tile apart
        assert part.box.tolist() == [
            *np.maximum(box[:2], tile[:2]) - tile[:2],
            *np.minimum(box[2:], tile[2:]) - tile[:2],
        ]


def test_an_object_that_a_tile_shows_whole_stays_as_its_file_has_it():
    box, tile = np.array([2.25, 1.5, 7.1, 4.7]), np.array([2, 1, 10, 8])
    mask = np.zeros((9, 12), bool)
    mask[2:4, 3:7] = True
    part = visible_part(box, 8.75, mask, tile)
    assert (part.share, part.area) == (1, 8.75)
    np.testing.assert_allclose(part.box, [0.25, 0.5, 5.1, 3.7])


def test_a_mask_thinner_than_a_pixel_counts_by_its_box():
    part = visible_part(
        np.array([2.0, 2, 6, 3]), 1.0, np.zeros((9, 12), bool), np.array([0, 0, 5, 9])
    )
    assert (part.share, part.area, part.box.tolist()) == (0.75, 0.75, [2, 2, 5, 3])


def test_tiles_are_images_of_the_data_set(tiled):
    for split in ("train", "val"):
        paths = dict(tiled.image_paths(split))
        tiles = tiled.tiles.filter(pc.field("split") == split).to_pylist()
        assert [row["image_id"] for row in tiles] == sorted(paths) == list(range(1, len(tiles) + 1))
        for row, image in zip(tiles, tiled.split_images(split), strict=True):
            left, top = row["left"], row["top"]
            whole = tiled.folder.parent / split / row["source_file"]
            cut = np.asarray(Image.open(whole))[top : top + 48, left : left + 48]
            np.testing.assert_array_equal(np.asarray(Image.open(paths[row["image_id"]])), cut)
            assert (image["width"], image["height"]) == cut.shape[1::-1] == (48, 48)


def test_objects_of_a_tile_are_those_of_its_image(tiled):
    whole, val = COCO(tiled.folder.parent / "val.json"), pc.field("split") == "val"
    shown = set()
    for tile in tiled.tiles.filter(val).to_pylist():
        corner = np.array([tile["left"], tile["top"]] * 2)
        window = (slice(corner[1], corner[1] + 48), slice(corner[0], corner[0] + 48))
        wanted = []
        for item in whole.imgToAnns[tile["source_image_id"]]:
            mask = whole.annToMask(item).astype(bool)
            part = mask[window]
            if part.sum() >= 0.5 * mask.sum():
                box = (*mask_to_box(part), item["category_id"], part.sum())
                wanted.append((*box, part.tobytes()))
                shown.add((tile["source_image_id"], item["id"]))
        rows = tiled.objects.filter(val & (pc.field("image_id") == tile["image_id"]))
        masks = [decode_mask(counts, 48, 48).tobytes() for counts in rows["mask"].to_pylist()]
        found = zip(*box_array(rows).T, rows["category_id"].to_pylist(),
                    rows["area"].to_pylist(), masks, strict=True)  # fmt: skip
        assert sorted(found) == sorted(wanted)
    assert len(shown) == len(whole.anns)
    ids = tiled.objects.filter(val)["object_id"].to_pylist()
    assert ids == list(range(1, len(ids) + 1)) == sorted(COCO(tiled.instances_file("val")).anns)


def test_the_whole_truth_is_kept(tiled):
    files = (tiled.whole_instances_file, tiled.folder.parent / "val.json")
    truth, given_ = (json.loads(path.read_text()) for path in files)
    assert truth["images"] == given_["images"]
    assert [(a["id"], a["bbox"], a["area"]) for a in truth["annotations"]] == [
        (a["id"], a["bbox"], a["area"]) for a in given_["annotations"]
    ]


def test_workers_change_nothing(new_tiled, tiled):
    other = new_tiled(num_workers=2)
    names = sorted(
        str(path.relative_to(tiled.folder)) for path in tiled.folder.rglob("*") if path.is_file()
    )
    _, different, missing = filecmp.cmpfiles(tiled.folder, other.folder, names, shallow=False)
    assert (different, missing) == ([], [])
    assert len(names) > 10


@pytest.fixture
def config(tmp_path):
    """Makes options of a data set of one image a split, 100 × 40 pixels, with boxes and their crowds."""

    def make(boxes, tile, **options):
        Image.new("RGB", (100, 40)).save(tmp_path / "a.png")
        annotations = [
            {"id": i, "image_id": 1, "category_id": 1, "bbox": box, "iscrowd": crowd}
            for i, (box, crowd) in enumerate(boxes, start=1)
        ]
        for split in ("train", "val"):
            document = {
                "images": [{"id": 1, "file_name": "a.png", "width": 100, "height": 40}],
                "annotations": annotations,
                "categories": [{"id": 1, "name": "cell"}],
            }
            (tmp_path / f"{split}.json").write_text(json.dumps(document))
        splits = {
            name: SplitConfig(instances=tmp_path / f"{name}.json", images=tmp_path)
            for name in ("train", "val")
        }
        return IngestConfig(**splits, tile=TileConfig(**tile), **options)

    return make


def test_what_no_tile_shows_enough_of_is_accounted_for(config, tmp_path):
    boxes = [([10, 5, 10, 10], 0), ([0, 0, 100, 40], 0), ([36, 5, 20, 10], 1)]
    summary = ingest(config(boxes, {"size": 40, "overlap": 0}), tmp_path / "out")
    # Tiles begin at 0, 40 and 60: of the crowd they show a fifth and the rest, of the large box two fifths.
    assert summary["counts"]["val"] == {
        "images": 3, "things": 3, "crowds": 2, "stuff": 0, "whole images": 1
    }  # fmt: skip
    reason = "no tile shows enough of it"
    assert summary["refused"] == [{"reason": reason, "count": 2, "first": "train/2, val/2"}]
    dataset = Dataset(tmp_path / "out")
    assert dataset.refused.to_pylist() == [
        {"reason": reason, "record": f"{split}/2"} for split in ("train", "val")
    ]
    crowds = dataset.objects.filter(pc.field("is_crowd") & (pc.field("split") == "val"))
    assert box_array(crowds).tolist() == [[36, 5, 40, 15], [0, 5, 16, 15]]
    assert crowds["area"].to_pylist() == [40, 160]
    assert crowds["image_id"].to_pylist() == [1, 2]


def test_less_may_be_enough(config, tmp_path):
    boxes = [([0, 0, 100, 40], 0)]
    tile = {"size": 40, "overlap": 0, "min_visible": 0.4}
    summary = ingest(config(boxes, tile), tmp_path / "out")
    assert summary["counts"]["train"]["things"] == 3
    assert summary["refused"] == []


def test_tiles_of_many_times_the_images_pixels_are_told(config, tmp_path):
    boxes = [([10, 5, 10, 10], 0)]
    summary = ingest(config(boxes, {"size": 40, "overlap": 0.97}), tmp_path / "many")
    *_, told = summary["warnings"]  # 61 tiles of 40 × 40 pixels an image of 100 × 40
    assert told.startswith(
        "ingest.tile.overlap 0.97 makes 122 tiles of 2 images, with 24 times their pixels"
    )
    few = ingest(config(boxes, {"size": 40}), tmp_path / "few")
    assert few["warnings"] == summary["warnings"][:-1]  # both splits have the same images


def test_an_image_smaller_than_a_tile_gives_what_it_has(config, tmp_path):
    ingest(config([([10, 5, 10, 10], 0)], {"size": 64}), tmp_path / "out")
    images = Dataset(tmp_path / "out").split_images("val")
    assert [(row["width"], row["height"]) for row in images] == [(64, 40), (64, 40)]


@pytest.mark.parametrize(
    ("box", "size", "error", "message"),
    [
        ([10, 5, 10, 10], 100, InvalidConfig,
         "ingest.tile.size 100 cuts no image, the largest is 100 × 40 pixels"),
        ([0, 0, 100, 40], 40, InvalidDataset,
         r"leaves no object of split train, 1 × no tile .*\(train/1\): choose a larger ingest.tile.size"),
    ],
)  # fmt: skip
def test_tiles_that_cannot_be_are_refused(config, tmp_path, box, size, error, message):
    with pytest.raises(error, match=message):
        ingest(config([(box, 0)], {"size": size}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_image_of_another_size_is_not_cut(config, tmp_path):
    given_ = config([([10, 5, 10, 10], 0)], {"size": 40}, check_images=False)
    Image.new("RGB", (90, 40)).save(tmp_path / "a.png")
    with pytest.raises(
        InvalidDataset, match=r"a.png has 90 × 40 pixels, not 100 × 40 .*check_images"
    ):
        ingest(given_, tmp_path / "out")


@pytest.mark.parametrize(
    "changes", [{"overlap": 1}, {"overlap": -0.1}, {"min_visible": 0}, {"size": 0}]
)
def test_impossible_options_are_named(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        TileConfig(**{"size": 64, **changes})


def test_stuff_is_in_every_tile_that_shows_it(tmp_path):
    """Scenes too can be cut; their stuff is larger than a tile."""
    scenes = ScenesConfig(num_train=2, num_val=2)
    ingest(IngestConfig(scenes=scenes), tmp_path / "whole")
    ingest(IngestConfig(scenes=scenes, tile=TileConfig(size=40, overlap=0.4)), tmp_path / "out")
    whole, tiled = Dataset(tmp_path / "whole"), Dataset(tmp_path / "out")

    def stuff(dataset):
        wanted = (pc.field("split") == "val") & ~pc.field("is_thing")
        rows = pq.read_table(dataset.folder / "objects.parquet", filters=wanted)
        names = ("image_id", "category_id", "mask")
        return zip(*(rows[name].to_pylist() for name in names), strict=True)

    masks = {(i, c): decode_mask(m, 64, 64) for i, c, m in stuff(whole)}
    tiles = {
        row["image_id"]: row for row in tiled.tiles.filter(pc.field("split") == "val").to_pylist()
    }
    joined = {key: np.zeros((64, 64), bool) for key in masks}
    for image_id, category_id, counts in stuff(tiled):
        tile = tiles[image_id]
        window = joined[tile["source_image_id"], category_id][tile["top"] :, tile["left"] :]
        window[:40, :40] |= decode_mask(counts, 40, 40)
    for key, mask in masks.items():
        np.testing.assert_array_equal(joined[key], mask)
