import json

import pytest

from data.attributes.folds import assign_folds, first_image_ids, fold_image_ids, write_some
from data.errors import InvalidConfig


def test_folds_cover_all_images_once_and_are_even():
    folds = assign_folds(range(100, 203), 4)
    assert sorted(image_id for fold in folds for image_id in fold) == list(range(100, 203))
    assert {len(fold) for fold in folds} == {25, 26}
    assert folds == assign_folds(list(reversed(range(100, 203))), 4)
    assert folds[0] != list(range(100, 126))


def test_more_folds_than_images_are_refused():
    with pytest.raises(
        InvalidConfig, match="2 training images, or groups of them, cannot make 3 folds"
    ):
        assign_folds([1, 2], 3)


def test_tiles_of_an_image_are_in_one_fold(tiled):
    folds = [fold_image_ids(tiled, "train", number, 2) for number in (0, 1)]
    of_train = [row for row in tiled.tiles.to_pylist() if row["split"] == "train"]
    assert sorted(folds[0] + folds[1]) == [row["image_id"] for row in of_train]
    sources = [
        {row["source_image_id"] for row in of_train if row["image_id"] in fold} for fold in folds
    ]
    assert (len(sources[0]), len(sources[1]), sources[0] & sources[1]) == (2, 2, set())


def test_subsets_are_nested_and_are_no_folds(dataset):
    few, more = (first_image_ids(dataset, "train", count) for count in (3, 6))
    assert (len(few), len(more)) == (3, 6)
    assert set(few) < set(more)
    assert few != fold_image_ids(dataset, "train", 0, 4)
    assert first_image_ids(dataset, "train", 12) == list(range(1, 13))


def test_a_subset_of_tiles_is_of_whole_images(tiled):
    source = dict(zip(*(tiled.tiles[name].to_pylist() for name in ("image_id", "source_image_id")),
                      strict=True))  # fmt: skip
    train = {row["image_id"] for row in tiled.tiles.to_pylist() if row["split"] == "train"}
    chosen = first_image_ids(tiled, "train", 13)
    whole = {source[key] for key in chosen}
    assert len(whole) == 2
    assert set(chosen) == {key for key in train if source[key] in whole}


def test_chosen_images_take_their_annotations_along(dataset, tmp_path):
    instances, path = dataset.instances_file("train"), tmp_path / "some.json"
    write_some(instances, {1, 5}, path)
    before, after = (json.loads(file.read_text()) for file in (instances, path))
    assert {item["id"] for item in after["images"]} == {1, 5}
    kept = [item for item in before["annotations"] if item["image_id"] in {1, 5}]
    assert after["annotations"] == kept
    assert after["categories"] == before["categories"]
