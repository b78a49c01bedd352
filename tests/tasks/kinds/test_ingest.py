"""The step `ingest` over a data set whose images are cut."""

import json

from data.ingest.options import IngestConfig, SplitConfig, TileConfig
from data.layouts.layout import read_layouts
from data.progress import silent
from data.vocabulary.tables import Dataset
from tasks.execution.context import StepContext
from tasks.kinds.ingest import run


def test_tiles_take_the_place_of_images(tiled, tmp_path):
    source = tiled.folder.parent
    splits = {
        name: SplitConfig(instances=source / f"{name}.json", images=source / name)
        for name in ("train", "val")
    }
    options = IngestConfig(**splits, tile=TileConfig(size=48, overlap=0.5))
    out, reports = tmp_path / "ingest" / "key", []
    out.mkdir(parents=True)
    step = StepContext(options, {}, out, tmp_path, "key", tmp_path, 1, lambda *r: reports.append(r))
    summary = run(step)
    assert summary == run(step)  # after a crash before its end, too
    dataset = Dataset(out)
    assert summary["counts"]["val"]["whole images"] == 3
    assert summary["counts"]["val"]["images"] == len(read_layouts(dataset, None, "val")) == 36
    assert summary["counts"]["val"]["things"] == sum(
        len(item.boxes) for item in read_layouts(dataset, None, "val")
    )
    ends = [report for report in reports if report[0] == 7]
    assert ends == [(7, 7, "images"), (7, 7, "images cut")] * 2
    assert "whole images" in (out / "card.md").read_text()


def test_what_is_left_out_and_what_looks_wrong_is_told(tiled, tmp_path):
    source = tiled.folder.parent
    document = json.loads((source / "val.json").read_text())
    image = document["images"][0]
    document["images"].append(image | {"id": 999, "file_name": "gone.png"})
    for item in document["annotations"]:
        item["bbox"][0] += image["width"]
    document["annotations"][0]["bbox"][0] -= image["width"]
    (tmp_path / "val.json").write_text(json.dumps(document))
    val = SplitConfig(instances=tmp_path / "val.json", images=source / "val")
    train = SplitConfig(instances=source / "train.json", images=source / "train")
    out = tmp_path / "ingest" / "key"
    out.mkdir(parents=True)
    step = StepContext(
        IngestConfig(train=train, val=val), {}, out, tmp_path, "key", tmp_path, 1, silent
    )
    told, missing, outside = run(step)["warnings"]
    assert "boxes may be corners" in told
    assert told in (out / "card.md").read_text()
    assert missing == "left out or mended: 1 × image file missing (val/gone.png)"
    assert outside.startswith("left out or mended: 35 × box outside the image")


def test_keys_of_data_sets_that_are_not_cut_stay():
    assert "tile" not in IngestConfig().keyed()
    assert IngestConfig(tile=TileConfig(size=64)).keyed()["tile"] == {
        "size": 64, "overlap": 0.25, "min_visible": 0.5
    }  # fmt: skip
