"""Frames of a film are known to belong together, wherever that matters."""

import json
import shutil

import pytest

from data.attributes.folds import first_image_ids, fold_image_ids
from data.errors import InvalidConfig
from data.ingest.ingestion import ingest
from data.ingest.options import IngestConfig, SplitConfig, TileConfig
from data.vocabulary.tables import GROUPS, Dataset


@pytest.fixture
def films(dataset, tmp_path):
    """Ingests the tiny data set, its images named as frames of films of three."""
    splits = {}
    for split in ("train", "val"):
        document = json.loads(dataset.instances_file(split).read_text())
        (tmp_path / split).mkdir()
        for number, item in enumerate(document["images"]):
            name = f"film{number % 4}_{number:03}.png"
            shutil.copy(dataset.image_folder(split) / item["file_name"], tmp_path / split / name)
            item["file_name"] = name
        (tmp_path / f"{split}.json").write_text(json.dumps(document))
        splits[split] = SplitConfig(instances=tmp_path / f"{split}.json", images=tmp_path / split)

    def make(**options):
        ingest(IngestConfig(**splits, **options), tmp_path / "out")
        return Dataset(tmp_path / "out")

    return make


def film_of(dataset, split):
    """Image id to the film that its name tells of."""
    if dataset.tiles is None:
        return {row["image_id"]: row["file_name"][:5] for row in dataset.split_images(split)}
    return {
        row["image_id"]: row["source_file"][:5]
        for row in dataset.tiles.to_pylist()
        if row["split"] == split
    }


@pytest.mark.parametrize("tile", [None, TileConfig(size=48, overlap=0.5)])
def test_frames_of_a_film_are_one_group(films, tile):
    found = films(group_by="^(film[0-9])_", tile=tile)
    for split in ("train", "val"):
        names, groups = film_of(found, split), found.groups(split)
        assert groups.keys() == names.keys()
        pairs = {(names[key], group) for key, group in groups.items()}
        assert len(pairs) == len({film for film, _ in pairs}) == len({group for _, group in pairs})
        assert len(pairs) == 4
        whole = found.whole_groups(split)
        assert all(whole[group] == group for group in groups.values())
    assert GROUPS.names == ["split", "image_id", "group_id"]


def test_films_are_not_torn_apart_by_folds_and_subsets(films):
    found = films(group_by="^(film[0-9])_")
    names = film_of(found, "train")
    folds = [fold_image_ids(found, "train", number, 3) for number in range(3)]
    assert sorted(key for fold in folds for key in fold) == sorted(names)
    of_folds = [{names[key] for key in fold} for fold in folds]
    assert sum(map(len, of_folds)) == 4
    chosen = first_image_ids(found, "train", 4)
    assert len(chosen) == 6  # two films
    assert set(chosen) == {key for key in names if names[key] in {names[key] for key in chosen}}
    with pytest.raises(InvalidConfig, match="4 training images, or groups of them, cannot make 5"):
        fold_image_ids(found, "train", 0, 5)


def test_without_groups_each_image_is_for_itself(films):
    found = films()
    assert found.whole_groups("train") == {}
    assert found.groups("val") == {
        row["image_id"]: row["image_id"] for row in found.split_images("val")
    }


def test_an_expression_that_matches_no_name_is_refused(films):
    with pytest.raises(
        InvalidConfig, match=r"ingest\.group_by 'reel' matches no file name, such as film0_"
    ):
        films(group_by="reel")
    with pytest.raises(ValueError, match=r"'\(' is no expression"):
        IngestConfig(group_by="(")
