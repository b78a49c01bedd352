"""Real and generated images are held against the same boxes."""

import json

import pyarrow as pa
import pytest

from data.coco.image_sets import SyntheticSet
from data.vocabulary.tables import BOX_COLUMNS, DETECTIONS, write_table
from models.metrics.coco_metrics import read_truth, truth_boxes
from models.metrics.detection_scores import detection_score, scored_images

REPEATS = 2


@pytest.fixture
def synthetic(dataset, tmp_path):
    """Two images of each of three real layouts; the first box of each was not asked for."""
    real = read_truth(dataset.instances_file("val"))
    sources = [item["id"] for item in real["images"]][3:]
    images, annotations, rows = [], [], []
    for source in sources:
        asked_for = [item for item in real["annotations"] if item["image_id"] == source][1:]
        for repeat in range(REPEATS):
            key = len(images) + 1
            rows.append(
                {"image_id": key, "source_image_id": source, "repeat": repeat, "file_name": "x"}
            )
            images.append({"id": key, "file_name": "x", "width": 64, "height": 64})
            annotations += [{**item, "id": len(annotations), "image_id": key} for item in asked_for]
    found = SyntheticSet(tmp_path / "set")
    found.folder.mkdir()
    write_table(pa.Table.from_pylist(rows), found.provenance_file)
    document = {"images": images, "annotations": annotations, "categories": real["categories"]}
    found.instances.write_text(json.dumps(document))
    return found


def boxes_of(truth):
    return {key: boxes.tolist() for key, (boxes, _) in truth_boxes(truth).items()}


def test_the_layout_protocol_asks_both_for_what_was_drawn(dataset, synthetic):
    scored = scored_images("layout", dataset, synthetic)
    real, generated = boxes_of(scored.real), boxes_of(scored.generated)
    assert set(real) == set(synthetic.source_image_ids)
    assert len(generated) == REPEATS * len(real)
    for row in synthetic.provenance.to_pylist():
        assert generated[row["image_id"]] == real[row["source_image_id"]]
    of_file = boxes_of(read_truth(dataset.instances_file("val")))
    assert all(boxes == of_file[key][1:] for key, boxes in real.items())


def test_the_lama_protocol_asks_both_for_all_that_is_labelled(dataset, synthetic):
    scored = scored_images("lama", dataset, synthetic)
    real, generated = boxes_of(scored.real), boxes_of(scored.generated)
    of_file = boxes_of(read_truth(dataset.instances_file("val")))
    assert real == {key: of_file[key] for key in set(synthetic.source_image_ids)}
    for row in synthetic.provenance.to_pylist():
        assert generated[row["image_id"]] == of_file[row["source_image_id"]]


def detections(truth, score=0.5):
    rows = [
        {"split": "val", "image_id": image_id, "category_id": int(label), "score": score, "detector": "d"}
        | dict(zip(BOX_COLUMNS, box.tolist(), strict=True))
        for image_id, (boxes, labels) in truth_boxes(truth).items()
        for box, label in zip(boxes, labels, strict=True)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=DETECTIONS)


@pytest.mark.parametrize(
    ("protocol", "confidence", "score"),
    [("layout", 0.01, 1.0), ("lama", 0.01, 0.0), ("lama", 0.25, 1.0), ("layout", 0.0001, 0.0)],
)
def test_what_is_found_scores_alike_in_real_and_generated_images(
    dataset, synthetic, protocol, confidence, score
):
    scored = scored_images(protocol, dataset, synthetic)
    for truth in (scored.real, scored.generated):
        assert detection_score(
            protocol, truth, detections(truth, confidence)
        ).map50 == pytest.approx(score)


def test_what_was_not_asked_for_is_no_miss_of_the_layout(dataset, synthetic):
    layout, lama = (scored_images(name, dataset, synthetic) for name in ("layout", "lama"))
    found = detections(layout.real)
    assert detection_score("layout", layout.real, found).map50 == pytest.approx(1)
    assert detection_score("lama", lama.real, found).map50 < 1
