import numpy as np
import pyarrow as pa
import pytest

from data.coco import boxes_by_image, read_coco
from data.tables import BOX_COLUMNS, DETECTIONS
from models.config import EvaluationConfig


def perfect(dataset, **changes):
    rows = []
    truth = boxes_by_image(read_coco(dataset.instances_file("val")))
    for image_id, (boxes, labels) in truth.items():
        for box, label in zip(boxes, labels, strict=True):
            row = {
                "split": "val",
                "image_id": image_id,
                "category_id": int(label),
                "score": 0.5,
                "detector": "d",
            }
            rows.append(row | dict(zip(BOX_COLUMNS, box.tolist(), strict=True)) | changes)
    return pa.Table.from_pylist(rows, schema=DETECTIONS)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({}, 1.0), ({"score": 0.3}, 1.0), ({"score": 0.29}, 0.0), ({"category_id": 99}, 0.0)],
)
@pytest.mark.filterwarnings("ignore")  # MMDetection warns at import
def test_recall_counts_objects_found_with_class_score_and_place(dataset, changes, expected):
    from tasks.evaluate import detection_recall

    found = perfect(dataset, **changes)
    config = EvaluationConfig(recall_score_threshold=float(np.float32(0.3)))
    image_ids = [1, 2, 3, 4, 5, 6]
    assert detection_recall(dataset.instances_file("val"), found, image_ids, config) == expected
