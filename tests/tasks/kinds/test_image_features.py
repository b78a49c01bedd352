"""Features as a step: their table, and the same by two workers."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from models.metrics.features import RandomFeatures, image_features
from models.metrics.options import FeatureOptions
from tasks.execution.context import StepContext
from tasks.kinds import image_features as kind


@pytest.fixture
def features(dataset, tmp_path, monkeypatch):
    """Makes the features of 12 images in 4 shards; returns the table's file and the summary."""
    monkeypatch.setattr(kind, "_SHARD_SIZE", 3)

    def make(name, execution, **changes):
        out, work = tmp_path / name, tmp_path / f"{name} work"
        out.mkdir()
        work.mkdir()
        options = FeatureOptions(
            extractor="random", resolution=32, split="train", execution=execution, **changes
        )
        inputs = {"ingest": dataset.folder}
        step = StepContext(options, inputs, out, work, "key", tmp_path, 1, lambda *report: None)
        summary = kind.run(step)
        return out / "features.parquet", summary

    return make


def test_a_row_is_an_image_and_what_the_extractor_makes_of_it(features, dataset, execution):
    path, summary = features("one", execution("local", 1))
    table = pq.read_table(path)
    images = dataset.image_paths("train")
    assert table["image_id"].to_pylist() == [image_id for image_id, _ in images]
    found = np.stack(table["features"].to_numpy())
    for row, (_, image) in zip(found, images, strict=True):
        alone = image_features(RandomFeatures(), [image], 32)[0]
        np.testing.assert_allclose(row, alone, rtol=1e-4, atol=1e-5)
    assert summary["extractor"] == RandomFeatures.name
    assert (summary["images"], summary["features"]) == found.shape


def test_two_workers_make_the_bytes_of_one(features, execution):
    one, _ = features("one", execution("local", 1))
    others, _ = features("others", execution("local", 2))
    assert one.read_bytes() == others.read_bytes()


def test_mirror_images_stand_beside_if_asked(features, dataset, execution, tmp_path):
    path, summary = features("both", execution("local", 1), mirrored=True)
    plain, alone = features("plain", execution("local", 1))
    table = pq.read_table(path)
    assert table.select(["image_id", "features"]).equals(pq.read_table(plain))
    assert summary == alone
    for row, (_, image) in zip(
        table["mirrored"].to_numpy(), dataset.image_paths("train"), strict=True
    ):
        with Image.open(image) as picture:
            picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "mirror.png")
        seen = image_features(RandomFeatures(), [tmp_path / "mirror.png"], 32)[0]
        np.testing.assert_allclose(row, seen, rtol=1e-3, atol=1e-4)
