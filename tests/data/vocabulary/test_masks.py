import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as coco_mask

from data.vocabulary.masks import decode_mask, encode_mask, encode_segmentations

HEIGHT, WIDTH = 11, 13
polygon = st.lists(st.floats(-5, 20), min_size=6, max_size=14).map(lambda v: v[: len(v) // 2 * 2])
bitmap = arrays.arrays(bool, (HEIGHT, WIDTH))


def encode(*segmentations):
    raw = [json.dumps(item).encode() for item in segmentations]
    return encode_segmentations(raw, [HEIGHT] * len(raw), [WIDTH] * len(raw))


def uncompressed(mask):
    flat = np.concatenate([[0], mask.reshape(-1, order="F").astype(int), [2]])
    edges = np.flatnonzero(np.diff(flat))
    runs = np.diff(np.concatenate([[0], edges])).tolist()
    return {"size": [HEIGHT, WIDTH], "counts": runs if not flat[1] else [0, *runs[1:]]}


@given(segmentations=st.lists(st.lists(polygon, min_size=1, max_size=3), min_size=1, max_size=5))
def test_polygons_equal_pycocotools(segmentations):
    encoded = encode(*segmentations)
    for item, counts, area in zip(segmentations, encoded.counts, encoded.areas, strict=True):
        rle = coco_mask.merge(coco_mask.frPyObjects(item, HEIGHT, WIDTH))
        assert counts.encode() == rle["counts"]
        assert area == coco_mask.area(rle)


@given(mask=bitmap)
def test_run_lengths_of_both_kinds_equal_pycocotools(mask):
    compressed = encode_mask(mask)
    encoded = encode(compressed, uncompressed(mask))
    assert encoded.broken == []
    assert encoded.counts[0] == compressed["counts"]
    for counts, area in zip(encoded.counts, encoded.areas, strict=True):
        np.testing.assert_array_equal(decode_mask(counts, HEIGHT, WIDTH), mask)
        assert area == mask.sum()


def test_one_broken_mask_spoils_no_other():
    good = [[0, 0, 5, 0, 5, 5]]
    encoded = encode(good, "text", None, [], [[1, 2]], good)
    assert encoded.broken == [1, 4]
    assert encoded.counts[0] == encoded.counts[5] is not None
    assert encoded.counts[2] is encoded.counts[3] is None
    assert np.isnan(encoded.areas[1:5]).all()


@pytest.mark.parametrize(
    "broken",
    [
        [[0, 0, 4, 0, 4]],
        [[0, 0, 4, 0]],
        [[0, 0, 4, 0, 1e9, 4]],
        [[0, 0, 4, 0, None, 4]],
        [1, 2, 3, 4, 5, 6],
        {"size": [HEIGHT, WIDTH]},
        {"size": [WIDTH, HEIGHT], "counts": [HEIGHT * WIDTH]},
        {"size": [HEIGHT, WIDTH], "counts": []},
        {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH - 1]},
        {"size": [HEIGHT, WIDTH], "counts": [-1, HEIGHT * WIDTH + 1]},
        {"size": [HEIGHT, WIDTH], "counts": ""},
        {"size": [HEIGHT, WIDTH], "counts": "o"},
        {"size": [HEIGHT, WIDTH], "counts": "ooooooooooooooooooooooooo"},
        {"size": [HEIGHT, WIDTH], "counts": "ö"},
        {"size": [HEIGHT, WIDTH], "counts": "Pf4"},
    ],
)
def test_what_is_no_mask_of_the_image_is_broken(broken):
    assert encode(broken).broken == [0]


def test_images_of_different_sizes_are_drawn_each_at_its_own():
    raw = [json.dumps([[0, 0, 50, 0, 50, 50, 0, 50]]).encode()] * 2
    encoded = encode_segmentations(raw, [10, 20], [30, 5])
    assert encoded.areas.tolist() == [300, 100]
