from dataclasses import replace

import numpy as np
import pytest

from data.ingest.options import TileConfig
from data.ingest.survey import fitting_resolution, fitting_sides, fitting_tile, survey


@pytest.mark.parametrize(("name", "has_masks"), [("photographs", False), ("tiled", True)])
def test_a_survey_counts_as_a_loop_does(request, name, has_masks):
    dataset = request.getfixturevalue(name)
    found, images = survey(dataset, "train"), dataset.split_images("train")
    things = [
        row for row in dataset.objects.to_pylist()
        if row["split"] == "train" and row["is_thing"] and not row["is_crowd"]
    ]  # fmt: skip
    counts = [sum(row["image_id"] == item["image_id"] for row in things) for item in images]
    assert found.objects_per_image.tolist() == counts
    sizes = {item["image_id"]: (item["width"], item["height"]) for item in images}
    assert sorted(map(tuple, found.image_sizes.tolist())) == sorted(sizes.values())
    for row, side, share in zip(things, found.object_sides, found.object_shares, strict=True):
        width, height = sizes[row["image_id"]]
        area = (row["x_max"] - row["x_min"]) * (row["y_max"] - row["y_min"])
        assert side == pytest.approx(area**0.5)
        assert share == pytest.approx((area / width / height) ** 0.5)
    assert found.num_masks == sum(row["mask"] is not None for row in things)
    assert (found.num_masks > 0) == has_masks
    assert found.category_ids == {row["category_id"] for row in things}


def test_nine_in_ten_images_with_objects_have_no_more(photographs):
    found = survey(photographs, "train")
    for share in (0.1, 0.5, 0.9, 1.0):
        most, some = found.most_objects(share), found.objects_per_image
        assert (some[some > 0] <= most).mean() >= share > (some[some > 0] < most).mean()


@pytest.fixture
def of_sides(photographs):
    """Factory of surveys of images of 1000 x 1000 pixels with objects of certain sides."""

    def create(*sides):
        values = np.array(sides, float)
        sizes = np.full((4, 2), 1000)
        found = survey(photographs, "train")
        return replace(found, image_sizes=sizes, object_sides=values, object_shares=values / 1000)

    return create


def test_tiles_are_for_objects_that_would_be_small(of_sides):
    assert fitting_tile(of_sides(63, 63, 63), 512) is None
    assert fitting_tile(of_sides(62, 62, 62), 512) == TileConfig(size=512)
    assert fitting_tile(of_sides(62, 62, 62), 1024) is None
    assert (
        fitting_tile(of_sides(10, 10, 10, 10, 40), 512).overlap == 0.3
    )  # of 96: 28 of nine in ten
    assert fitting_tile(of_sides(10, 10, 500), 512).overlap == 0.5


def test_no_image_is_cut_into_tiles_that_are_as_large(of_sides):
    found = of_sides(2, 2, 2)
    tiny = replace(found, image_sizes=np.full((4, 2), 32), object_shares=found.object_sides / 32)
    assert fitting_tile(tiny, 256) is None


@pytest.mark.parametrize(
    ("size", "resolution", "sides"),
    [
        ((100, 100), 256, (224, 224)),
        ((362, 362), 256, (736, 736)),
        ((363, 363), 512, (736, 736)),
        ((500, 2000), 512, (1333, 800)),
        ((300, 700), 512, (1333, 608)),
    ],
)
def test_sizes_follow_the_images(size, resolution, sides):
    assert fitting_resolution(*size) == resolution
    assert fitting_sides(*size, (1333, 800)) == sides
