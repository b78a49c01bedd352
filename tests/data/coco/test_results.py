import hashlib
import json

import pytest

from data.coco.results import read_results
from data.errors import InvalidDataset
from data.vocabulary.tables import DETECTIONS

VAL = range(1, 7)
"""Ids of the validation images."""

GOOD = {"image_id": 1, "category_id": 2, "bbox": [1.5, 2, 10, 20.25], "score": 0.5}


@pytest.fixture
def results(tmp_path):
    """Writes a results file; returns its path."""

    def write(*entries):
        path = tmp_path / "bbox.json"
        path.write_text(json.dumps(entries))
        return path

    return write


def test_a_results_file_becomes_detections(dataset, results):
    extra = GOOD | {"image_id": 2.0, "segmentation": {"size": [64, 64], "counts": "abc"}}
    path = results(GOOD, extra)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    table = read_results(path, dataset, "val", VAL)
    assert table.schema == DETECTIONS
    assert table["image_id"].to_pylist() == [1, 2]
    assert table.to_pylist()[0] == {
        "split": "val", "image_id": 1, "category_id": 2, "score": 0.5, "x_min": 1.5, "y_min": 2,
        "x_max": 11.5, "y_max": 22.25, "detector": f"results/bbox.json@{digest}",
    }  # fmt: skip
    assert read_results(results(), dataset, "val", VAL).num_rows == 0
    path.write_text(json.dumps([GOOD]), encoding="utf-8-sig")
    assert read_results(path, dataset, "val", VAL).num_rows == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 99}, r"1 entries with images that split val does not have.*\[1\]: 99"),
        ({"category_id": 77}, r"categories that the data set does not have.*\[1\]: 77"),
        ({"bbox": [0, 0, -1, 5]}, r"negative side.*\[1\]: \[0.0, 0.0, -1.0, 5.0\]"),
        ({"bbox": [0, 0, 1e999, 5]}, "not a COCO results file|not finite"),
        ({"bbox": [0, 0, 1]}, r"not a COCO results file.*\$\[1\]\.bbox"),
        ({"score": 1.5}, r"scores outside of \[0, 1\].*\[1\]: 1.5"),
        ({"score": "high"}, r"not a COCO results file.*\$\[1\]\.score"),
    ],
)
def test_a_broken_entry_is_named(dataset, results, change, message):
    path = results(GOOD, GOOD | change)
    with pytest.raises(InvalidDataset, match=f"bbox.json.*({message})"):
        read_results(path, dataset, "val", VAL)


@pytest.mark.parametrize("content", [b"", b"[", b"{}", b"\xff\xfe", b'{"annotations": []}'])
def test_other_files_are_refused(dataset, tmp_path, content):
    path = tmp_path / "other.json"
    path.write_bytes(content)
    with pytest.raises(InvalidDataset, match=r"other\.json is not a COCO results file"):
        read_results(path, dataset, "val", VAL)
    with pytest.raises(InvalidDataset, match=r"missing\.json: No such file"):
        read_results(tmp_path / "missing.json", dataset, "val", VAL)
