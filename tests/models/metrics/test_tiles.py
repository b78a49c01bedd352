import numpy as np
import pyarrow as pa
import pytest

from data.coco.image_sets import whole_images
from data.vocabulary.boxes import xywh_to_xyxy
from data.vocabulary.tables import BOX_COLUMNS, DETECTIONS, TILES
from models.metrics.coco_metrics import coco_metrics, read_truth
from models.metrics.tiles import join_tiles

TWO_TILES = pa.Table.from_pylist(
    [
        {"split": "val", "image_id": i, "source_image_id": 9, "source_file": "a.png", "left": left, "top": 5,
         "right": left + 50, "bottom": 55}
        for i, left in ((2, 30), (1, 0))
    ],
    schema=TILES,
)  # fmt: skip


def detections(*rows):
    """A table of (image id, category id, score, box)."""
    return pa.Table.from_pylist(
        [
            {"split": "val", "image_id": image_id, "category_id": label, "score": score,
             "detector": "d", **dict(zip(BOX_COLUMNS, map(float, box), strict=True))}
            for image_id, label, score, box in rows
        ],
        schema=DETECTIONS,
    )  # fmt: skip


def joined(*rows):
    table = join_tiles(detections(*rows), TWO_TILES)
    assert table.schema == DETECTIONS
    assert set(table["image_id"].to_pylist()) <= {9}
    names = ("category_id", "score", *BOX_COLUMNS)
    return [tuple(round(row[name], 3) for name in names) for row in table.to_pylist()]


def perfect(dataset):
    """What a detector finds that finds all that tiles have."""
    truth = read_truth(dataset.instances_file("val"))["annotations"]
    return detections(
        *((a["image_id"], a["category_id"], 1.0, xywh_to_xyxy(np.array(a["bbox"]))) for a in truth)
    )


@pytest.mark.parametrize("masks", ["rle", "none"])
@pytest.mark.parametrize("seed", range(3))
def test_a_perfect_detector_of_tiles_is_one_of_whole_images(new_tiled, seed, masks):
    dataset = new_tiled(seed, masks)
    whole, found = whole_images(dataset), perfect(dataset)
    truth = read_truth(whole.instances)
    together = join_tiles(found, whole.tiles)
    assert found.num_rows > together.num_rows == len(truth["annotations"])
    metrics = coco_metrics(truth, together)
    assert (metrics.map, metrics.mar100) == (1, 1)


def test_the_best_of_an_object_s_detections_stays():
    assert joined((1, 7, 0.4, (34, 0, 44, 10)), (2, 7, 0.9, (4, 0, 15, 10))) == [
        (7, 0.9, 34, 5, 45, 15)
    ]


def test_one_that_a_tile_s_edge_cuts_gives_way_to_one_that_none_cuts():
    part, whole = (1, 7, 0.7, (38, 2, 49.5, 12)), (2, 7, 0.4, (8, 2, 24, 12))
    assert joined(part, whole) == joined(whole, part) == [(7, 0.4, 38, 7, 54, 17)]
    sure = (1, 7, 0.9, (38, 2, 49.5, 12))
    assert joined(sure, whole) == [(7, 0.9, 38, 7, 49.5, 17)]
    ends_with_the_image = (2, 7, 0.4, (38, 2, 50, 12))
    assert joined((2, 7, 0.3, (36, 2, 48, 12)), ends_with_the_image) == [(7, 0.4, 68, 7, 80, 17)]


def test_of_equal_scores_the_one_that_is_cut_the_least_stays():
    part, all_of_it = (1, 7, 1.0, (33, 0, 40, 10)), (2, 7, 1.0, (3, 0, 14, 10))
    assert joined(part, all_of_it) == joined(all_of_it, part) == [(7, 1, 33, 5, 44, 15)]


def test_ids_of_classes_may_be_large():
    label = 2**55
    rows = (1, label, 0.4, (34, 0, 44, 10)), (2, label, 0.9, (4, 0, 15, 10))
    assert joined((1, 7, 0.5, (0, 0, 9, 9)), *rows) == [
        (7, 0.5, 0, 5, 9, 14),
        (label, 0.9, 34, 5, 45, 15),
    ]


def test_other_classes_and_places_stay():
    rows = (1, 7, 0.4, (30, 0, 40, 10)), (2, 8, 0.9, (0, 0, 10, 10)), (2, 7, 0.8, (7, 0, 17, 10))
    assert len(joined(*rows)) == 3


def test_nothing_found_is_nothing():
    assert joined() == []


def test_whole_images_are_counted_in_words(tiled, dataset):
    assert str(whole_images(tiled)) == "3 whole images, 12 tiles each"
    assert whole_images(dataset) is None
