"""From images without labels to what detectors are trained on."""

import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pycocotools.coco import COCO

from data.attributes.options import PseudoLabelConfig
from data.ingest.options import UnlabelledConfig
from data.layouts.layout import read_layouts
from data.layouts.options import EVERYTHING, Protocol
from data.vocabulary.tables import DETECTIONS, Dataset
from models.detector.options import DetectorTraining
from tasks.execution.context import StepContext
from tasks.kinds import ingest_unlabelled, pseudo_label

NUM_IMAGES = 4


@pytest.fixture
def context(dataset, tmp_path):
    def make(name, options, **inputs):
        out = tmp_path / name
        out.mkdir(exist_ok=True)
        return StepContext(
            options, {"ingest": dataset.folder, **inputs}, out, tmp_path, "key", tmp_path, 1,
            lambda *report: None,
        )  # fmt: skip

    return make


def detections(scores_by_image):
    rows = [
        {
            "split": "unlabelled", "image_id": image_id, "category_id": 1 + k, "score": score,
            "x_min": 10.0, "y_min": 12.0, "x_max": 30.5, "y_max": 70.0, "detector": "some",
        }
        for image_id, scores in scores_by_image.items()
        for k, score in enumerate(scores)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, DETECTIONS)


@pytest.fixture
def made(context, tmp_path):
    """Makes pseudo-labels of four Scenes from scores by image; returns the context and the summary."""

    def make(scores_by_image):
        images = context("unlabelled", UnlabelledConfig(num_scenes=NUM_IMAGES))
        ingest_unlabelled.run(images)
        (tmp_path / "found").mkdir()
        pq.write_table(detections(scores_by_image), tmp_path / "found" / "detections.parquet")
        given = context(
            "pseudo", PseudoLabelConfig(), unlabelled=images.out, detections=tmp_path / "found"
        )
        return given, pseudo_label.run(given)

    return make


def test_pseudo_labels_are_a_data_set(made, dataset, tmp_path):
    given, summary = made({1: (0.9, 0.4), 3: (0.6, 0.8, 0.5)})
    assert summary["boxes"] == 3
    assert summary["share_without_box"] == 0.5
    assert summary["left_out"]["score not above 0.5"] == 2
    shutil.move(tmp_path / "unlabelled", tmp_path / "moved")  # as with the store
    pseudo = Dataset(given.out, images_of=tmp_path / "moved")
    assert pseudo.things == dataset.things
    assert all(path.is_file() for _, path in pseudo.image_paths("unlabelled"))
    layouts = read_layouts(pseudo, None, "unlabelled", EVERYTHING)
    assert [layout.category_ids.tolist() for layout in layouts] == [[1], [], [1, 2], []]
    assert layouts[0].boxes.tolist() == [[10, 12, 30.5, 64]]
    several = read_layouts(pseudo, None, "unlabelled", Protocol(min_objects=2))
    assert [layout.image_id for layout in several] == [3]
    coco = COCO(str(pseudo.instances_file("unlabelled")))
    assert sorted(coco.getImgIds()) == [1, 2, 3, 4]
    assert [item["bbox"] for item in coco.loadAnns(coco.getAnnIds(1))] == [[10, 12, 20.5, 52]]
    assert [item["name"] for item in coco.loadCats(coco.getCatIds())] == list(
        dataset.things.values()
    )
    card = (given.out / "card.md").read_text()
    assert "3 boxes in 4 images; 50.0% of the images have none." in card
    assert "| class | boxes | score above 0.7 | score above 0.9 |" in card
    assert "| all | 3 | 2 | 0 |" in card
    assert "data:image/png" in card


def test_a_detector_that_is_sure_of_nothing_leaves_images_without_objects(made):
    given, summary = made({2: (0.2,)})
    assert summary["warnings"] == ["no detection is kept: lower pseudo_labels.score_threshold, 0.5"]
    assert summary["share_without_box"] == 1
    layouts = read_layouts(Dataset(given.out), None, "unlabelled")
    assert [len(layout.boxes) for layout in layouts] == [0] * NUM_IMAGES


@pytest.mark.filterwarnings("ignore")  # MMDetection and MMEngine warn a lot
def test_a_detector_trains_on_real_and_pseudo_labelled_images(made, context):
    from flows.presets import PRESETS
    from tasks.kinds.train_detector import run

    given, _ = made({1: (0.9,), 3: (0.6,)})
    tiny = {**PRESETS["demo"]["train_detector"], "num_iterations": 2, "images": "real+pseudo"}
    inputs = {"unlabelled": given.inputs["unlabelled"], "pseudo-labels": given.out}
    summary = run(context("trained", DetectorTraining.model_validate(tiny), **inputs))
    assert summary["images"] == {"real": 12, "pseudo-labelled": NUM_IMAGES}
    assert summary["iterations"] == 2
    assert summary["passes"] == 2 * 8 / (12 + NUM_IMAGES)
