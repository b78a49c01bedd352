import json

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.attributes.options import AttributeConfig
from data.vocabulary.tables import DETECTIONS
from tasks.execution.context import StepContext
from tasks.kinds.label_attributes import _largest, _says_little, run


def test_detections_of_several_detectors_label_one_data_set(dataset, tmp_path):
    things = dataset.objects.filter(pc.field("is_thing"))
    found = pa.table(
        {name: things[name] for name in ("split", "image_id", "category_id")}
        | {"score": pa.array([0.9] * things.num_rows, pa.float32())}
        | {name: things[name].cast(pa.float32()) for name in ("x_min", "y_min", "x_max", "y_max")}
        | {"detector": ["perfect"] * things.num_rows}
    ).cast(DETECTIONS)
    odd = pc.equal(pc.bit_wise_and(found["image_id"], 1), 1)
    parts = {
        "train a": found.filter(pc.and_(pc.equal(found["split"], "train"), odd)),
        "train b": found.filter(pc.and_(pc.equal(found["split"], "train"), pc.invert(odd))),
        "val": found.filter(pc.equal(found["split"], "val")).slice(0, 0),
    }
    for name, part in parts.items():
        (tmp_path / name).mkdir()
        pq.write_table(part, tmp_path / name / "detections.parquet")
    (tmp_path / "out").mkdir()
    inputs = {f"detections/{name}": tmp_path / name for name in parts}
    summary = run(
        StepContext(
            AttributeConfig(), {"ingest": dataset.folder, **inputs}, tmp_path / "out", tmp_path,
            "key", tmp_path, 1, lambda *report: None,
        )
    )  # fmt: skip
    assert summary["hard_share"] == {"train": 0.0, "val": 1.0}
    (warning,) = summary["warnings"]
    assert warning.startswith("0.0% of the training objects are hard")
    assert "num_folds" in warning
    card = (tmp_path / "out" / "card.md").read_text()
    assert "rank correlation with hard" in card
    assert len(card) < 300_000
    assert json.loads((tmp_path / "out" / "calibration.json").read_text())["By class"]


def test_a_share_of_hard_objects_that_says_little_is_told_with_what_to_do():
    assert [_says_little(share) for share in (0.05, 0.5, 0.95)] == [[]] * 3
    assert "raise extract_attributes.scoring.num_folds" in _says_little(0.04)[0]
    assert "train the attribute detector longer" in _says_little(0.96)[0]


def test_of_thousands_of_classes_the_card_has_the_largest():
    rows = [{"class": f"c{i}", "objects": i, "share of hard": 0.5} for i in range(5000)]
    lines = _largest(rows).splitlines()
    assert [line.split(" | ")[1] for line in lines[2:202]] == [
        str(i) for i in range(4999, 4799, -1)
    ]
    assert lines[-1] == "4800 smaller ones stand in `calibration.json`."
    assert len(_largest(rows[:200]).splitlines()) == 202
