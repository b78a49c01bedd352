import numpy as np
import pyarrow as pa
import pytest

from data.attributes.pseudo_labels import pseudo_objects, sure_detections
from data.vocabulary.tables import DETECTIONS, IMAGES, OBJECTS

IMAGE_SIZES = {7: (40, 30), 3: (20, 50), 11: (64, 64)}


@pytest.fixture
def images():
    rows = [
        {"split": "unlabelled", "image_id": key, "file_name": f"{key}.png", "width": w, "height": h}
        for key, (w, h) in IMAGE_SIZES.items()
    ]
    return pa.Table.from_pylist(rows, IMAGES)


@pytest.fixture
def detections():
    """Random ones; some reach out of their images, some lie beside them."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(300):
        left, top, width, height = rng.uniform([-30, -30, 0, 0], [70, 70, 30, 30])
        rows.append(
            {
                "split": "unlabelled", "image_id": int(rng.choice(list(IMAGE_SIZES))),
                "category_id": int(rng.choice([-1, 2, 5])), "score": rng.choice([0.25, 0.5, 0.75, 1.0]),
                "x_min": left, "y_min": top, "x_max": left + width, "y_max": top + height,
                "detector": "train-detector/key",
            }
        )  # fmt: skip
    return pa.Table.from_pylist(rows, DETECTIONS)


def by_hand(detections, threshold):
    kept, reasons = [], []
    for row in detections.to_pylist():
        width, height = IMAGE_SIZES[row["image_id"]]
        row["x_min"], row["x_max"] = (min(max(row[k], 0), width) for k in ("x_min", "x_max"))
        row["y_min"], row["y_max"] = (min(max(row[k], 0), height) for k in ("y_min", "y_max"))
        if row["score"] <= threshold:
            reasons.append(f"score not above {threshold}")
        elif row["category_id"] == -1:
            reasons.append("class not of the data set")
        elif row["x_min"] >= row["x_max"] or row["y_min"] >= row["y_max"]:
            reasons.append("box without area in the image")
        else:
            kept.append(row)
    return kept, {reason: reasons.count(reason) for reason in reasons}


@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_sure_detections_inside_their_images_are_kept(images, detections, threshold):
    kept, dropped = sure_detections(detections, images, [2, 5], threshold)
    rows, reasons = by_hand(detections, float(threshold) or 0)
    assert kept.to_pylist() == rows
    assert {reason: count for reason, count in dropped.items() if count} == reasons
    assert kept.num_rows + sum(dropped.values()) == detections.num_rows


def test_detections_become_things(images, detections):
    kept, _ = sure_detections(detections, images, [2, 5], 0.5)
    objects = pseudo_objects(kept)
    assert objects.schema == OBJECTS
    for number, (row, found) in enumerate(
        zip(objects.to_pylist(), kept.to_pylist(), strict=True), start=1
    ):
        assert row["object_id"] == number
        assert all(
            row[k] == found[k] for k in ("split", "image_id", "category_id", "x_min", "y_max")
        )
        sides = found["x_max"] - found["x_min"], found["y_max"] - found["y_min"]
        assert row["area"] == sides[0] * sides[1]
        assert (row["is_thing"], row["is_crowd"], row["mask"]) == (True, False, None)


def test_nothing_found_is_no_object(images, detections):
    kept, dropped = sure_detections(detections.slice(0, 0), images, [2, 5], 0.5)
    assert pseudo_objects(kept).num_rows == 0
    assert sum(dropped.values()) == 0
