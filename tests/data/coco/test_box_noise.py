import json

import numpy as np
import pytest

from data.coco.box_noise import write_noisy
from data.vocabulary.boxes import xywh_to_xyxy


def boxes(path):
    return xywh_to_xyxy(
        np.array([item["bbox"] for item in json.loads(path.read_text())["annotations"]])
    )


def test_edges_move_by_a_share_of_their_side_and_stay_in_the_image(dataset, tmp_path):
    instances, noisy, again = dataset.instances_file("train"), tmp_path / "a", tmp_path / "b"
    write_noisy(instances, 0.05, noisy)
    write_noisy(instances, 0.05, again)
    assert noisy.read_bytes() == again.read_bytes()
    before, after = boxes(instances), boxes(noisy)
    shifts = (after - before) / np.tile(before[:, 2:] - before[:, :2], 2)
    inside = ((after > 0) & (after < 64)).all(axis=1)
    assert shifts[inside].std() == pytest.approx(0.05, rel=0.2)
    assert abs(shifts[inside].mean()) < 0.01
    assert after.min() >= 0
    assert after.max() <= 64


def test_boxes_keep_a_size_and_all_else_stays(dataset, tmp_path):
    instances, noisy = dataset.instances_file("train"), tmp_path / "noisy"
    write_noisy(instances, 2.0, noisy)
    assert (boxes(noisy)[:, 2:] > boxes(noisy)[:, :2]).all()
    before, after = (json.loads(path.read_text()) for path in (instances, noisy))
    for document in (before, after):
        for item in document["annotations"]:
            del item["bbox"], item["area"]
    assert after == before
