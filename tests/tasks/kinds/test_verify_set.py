"""Verified sets as steps: what they hold, say, and refuse."""

import json

import pyarrow as pa
import pytest

from data.attributes.options import VerificationOptions
from data.coco.files import write_coco
from data.coco.image_sets import SyntheticSet
from data.errors import InvalidConfig
from data.vocabulary.tables import DETECTIONS, write_table
from tasks.execution.context import StepContext
from tasks.kinds.verify_set import run


@pytest.fixture
def context(tmp_path):
    """Three pictures with a cat each; the last one's is not found."""
    drawn = SyntheticSet(tmp_path / "set")
    for name in ("set", "found", "out"):
        (tmp_path / name).mkdir()
    pictures = [{"id": k, "file_name": f"{k}.png", "width": 64, "height": 64} for k in (1, 2, 3)]
    cats = [
        {"id": k, "image_id": k, "category_id": 7, "bbox": [0, 0, 32, 32], "area": 1024, "iscrowd": 0,
         "attribute": "hard"}
        for k in (1, 2, 3)
    ]  # fmt: skip
    write_coco(drawn.instances, pictures, cats, {7: "cat"})
    rows = [{"image_id": k, "file_name": f"{k}.png", "source_image_id": k} for k in (1, 2, 3)]
    write_table(pa.Table.from_pylist(rows), drawn.provenance_file)
    found = [
        {"split": "train", "image_id": k, "category_id": 7, "score": score, "x_min": 0, "y_min": 0,
         "x_max": 32, "y_max": 36, "detector": "judge"}
        for k, score in ((1, 0.9), (2, 0.6), (3, 0.1))
    ]  # fmt: skip
    write_table(pa.Table.from_pylist(found, DETECTIONS), tmp_path / "found" / "detections.parquet")

    def make(**options):
        inputs = {"set": drawn.folder, "detections": tmp_path / "found"}
        return StepContext(
            VerificationOptions(**options), inputs, tmp_path / "out", tmp_path, "key", tmp_path, 1,
            lambda *report: None,
        )  # fmt: skip

    return make


@pytest.mark.parametrize(
    ("action", "images", "objects", "height"),
    [("keep", 3, 3, 32), ("drop-object", 3, 2, 32), ("drop-image", 2, 2, 32), ("refine", 3, 3, 36)],
)
def test_a_verified_set_has_the_labels_that_stay_and_the_sets_images(
    context, action, images, objects, height
):
    step = context(action=action)
    summary = run(step)
    verified = SyntheticSet(step.inputs["set"], step.out)
    document = json.loads(verified.instances.read_text())
    assert (len(document["images"]), len(document["annotations"])) == (images, objects)
    assert document["annotations"][0]["bbox"] == [0, 0, 32, height]
    assert document["categories"][0]["name"] == "cat"
    assert verified.provenance["image_id"].to_pylist() == [
        item["id"] for item in document["images"]
    ]
    assert verified.image_folder == SyntheticSet(step.inputs["set"]).image_folder
    counts = summary["counts"]
    assert (counts["images kept"], counts["found"], counts["kept"]) == (images, 2, objects)
    assert counts["moved"] == (2 if action == "refine" else 0)
    card = (step.out / "card.md").read_text()
    assert f"| hard | 3 | 2 | {objects} | {3 - objects} |" in card
    assert "independent detector" in card


def test_a_set_that_is_judged_by_the_attribute_detector_says_so(context):
    step = context(by="detector")
    run(step)
    assert "it is not independent" in (step.out / "card.md").read_text()


def test_a_verification_that_leaves_no_image_is_refused(context):
    with pytest.raises(
        InvalidConfig, match=r"none of the 3 images.*another action than drop-image"
    ):
        run(context(action="drop-image", score_threshold=0.95))
