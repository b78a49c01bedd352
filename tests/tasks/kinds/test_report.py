"""The report as a step: from artifacts of every kind to a page and a card."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from PIL import Image

from data.artifacts.identity import StepIdentity
from data.artifacts.manifest import Manifest
from data.attributes.options import ATTRIBUTES_NAME
from data.coco.files import write_coco
from data.coco.image_sets import SyntheticSet
from data.layouts.layout import read_layouts
from data.layouts.options import POLICIES, Protocol
from data.vocabulary.boxes import area, xyxy_to_xywh
from data.vocabulary.tables import ATTRIBUTES, DETECTIONS, write_table
from models.metrics.options import MeasureOptions, ReportOptions
from tasks.catalogue import KINDS
from tasks.execution.context import StepContext, artifact_name
from tasks.kinds.report import _copy_gallery, _layouts, _missed_gallery, _warnings, run

PROTOCOL = Protocol(min_area_fraction=0.06, min_objects=1)
SIZE = (48, 40)
"""Of generated images, another one than the real images' on purpose."""


def make(root, kind, summary, **more):
    """An artifact without files."""
    folder = root / kind / f"{sum(1 for _ in root.glob('*/*')):032x}"
    folder.mkdir(parents=True)
    make_manifest(folder, kind, summary, **more)
    return folder


def make_manifest(folder, kind, summary, options=None, inputs=None, files=None):
    manifest = Manifest(
        kind=kind, key=folder.name, versions={}, options=options or {}, foreign={}, inputs=inputs or {},
        files=files or {}, summary=summary, environment={"device": "cpu"}, seconds=12.34,
        peak_memory_bytes=1_500_000_000, created_at="2026-01-01T00:00:00Z",
    )  # fmt: skip
    (folder / "manifest.json").write_text(manifest.model_dump_json())


def make_attributes(dataset, rng):
    """Every third object is found by no detection."""
    things = dataset.objects.filter(pc.field("is_thing"))
    ious = rng.uniform(0.5, 1, things.num_rows) * (np.arange(things.num_rows) % 3 > 0)
    return pa.table(
        {
            **{k: things[k] for k in ("split", "object_id", "image_id", "category_id", "is_thing")},
            "best_iou": ious,
            "matched_score": pa.array([value or None for value in ious], pa.float32()),
            "matched_category_id": things["category_id"],
            "attribute": ["easy" if value else "hard" for value in ious],
        },
        schema=ATTRIBUTES,
    )


def make_measures(root, rows):
    folder = make(
        root, "measure", {"results": {"kid_hard": 0.5, "frechet_hard": None}},
        options=MeasureOptions().model_dump(),
    )  # fmt: skip
    found = rows.scores("scorer", {"real": 0.89, "origin": 0.82, "easy": 0.9, "hard": 0.7})
    found += rows.scores("detector", {"real": 0.93, "origin": 0.85, "easy": 0.84, "hard": 0.75})
    copies = [
        {"images": policy, "image_id": 1 + k, "real_image_id": 1 + k, "distance": (k + 1) / 10, "limit": 0.15}
        for policy in POLICIES
        for k in range(3)
    ]  # fmt: skip
    for name, table in {"fidelity": rows.fidelity(), "scores": found, "copies": copies}.items():
        write_table(pa.Table.from_pylist(table), folder / f"{name}.parquet")
    return folder


def make_comparison(root, rows):
    found = rows.comparison(
        {
            "real": (0.555, 0.561, 0.550),
            "real x 0.25": (0.40, 0.41, 0.40), "real x 0.5": (0.49, 0.48, 0.50),
            "real+hard": (0.572, 0.580, 0.566), "real+copy-paste": (0.55, 0.53, 0.57), "real+easy": (0.54,),
        },
        classes=("cube", "<ball>"),
    )  # fmt: skip
    summary = {
        "results": {"map_real": 0.555, "worth_real_hard": "inf"},
        "answers": found.answers,
        "missing": ["main/real+easy/2"],
    }
    folder = make(root, "compare", summary)
    tables = {"arms": found.arms, "trainability": found.detectors, "contrasts": found.contrasts}
    for name, table in tables.items():
        write_table(pa.Table.from_pylist(table), folder / f"{name}.parquet")
    return folder


def make_set(root, dataset, attributes, policy, rng):
    """Noise with the layouts of the validation images."""
    folder = make(
        root, "synthesize", {"layouts": {"images": 6, "things": 20}},
        options={"policy": policy, "protocol": PROTOCOL.model_dump()},
    )  # fmt: skip
    synthetic = SyntheticSet(folder)
    synthetic.image_folder.mkdir()
    layouts = [
        item.with_policy(policy) for item in read_layouts(dataset, attributes, "val", PROTOCOL)
    ]
    real = dict(dataset.image_paths("val"))
    pictures, annotations, rows = [], [], []
    for number, layout in enumerate(layouts, start=1):
        name = f"{number:012d}.png"
        pixels = np.asarray(Image.open(real[layout.image_id]).convert("RGB"), np.float64)
        noisy = (pixels + rng.normal(0, 20, pixels.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).resize(SIZE).save(synthetic.image_folder / name)
        pictures.append({"id": number, "file_name": name, "width": SIZE[0], "height": SIZE[1]})
        boxes = layout.boxes_at(*SIZE)
        rows.append(
            {"image_id": number, "file_name": name, "source_image_id": layout.image_id, "repeat": 0}
        )
        annotations += [
            {
                "id": 1000 * number + int(index), "image_id": number, "iscrowd": 0,
                "category_id": int(layout.category_ids[index]),
                "bbox": xyxy_to_xywh(boxes[index]).tolist(),
                "area": float(area(boxes[index])),
                "attribute": layout.attributes[index],
            }
            for index in np.flatnonzero(layout.is_thing)
        ]  # fmt: skip
    write_coco(synthetic.instances, pictures, annotations, dataset.things)
    write_table(pa.Table.from_pylist(rows), synthetic.provenance_file)
    return folder


def make_detections(root, policy, folder):
    """Every other object of a set is found."""
    annotations = json.loads(SyntheticSet(folder).instances.read_text())["annotations"]
    folder = make(root, "detect", {})
    rows = [
        {
            "split": "val", "image_id": item["image_id"], "category_id": item["category_id"],
            "score": 0.9, "x_min": item["bbox"][0], "y_min": item["bbox"][1],
            "x_max": item["bbox"][0] + item["bbox"][2], "y_max": item["bbox"][1] + item["bbox"][3],
            "detector": "scorer",
        }
        for item in annotations[::2]
    ]  # fmt: skip
    write_table(pa.Table.from_pylist(rows, DETECTIONS), folder / "detections.parquet")
    return folder


@pytest.fixture(scope="module")
def context(dataset, rows, tmp_path_factory):
    """A report's context over made-up artifacts of all kinds; the step was run."""
    made = report_context(dataset, rows, tmp_path_factory.mktemp("report"))
    summary = run(made)
    (made.work / "summary.json").write_text(json.dumps(summary))
    return made


def report_context(dataset, rows, folder, **options):
    rng, root = np.random.default_rng(0), folder / "root"
    root.mkdir()
    attributes = make_attributes(dataset, rng)
    inputs = {
        name: make(root, kind, {})
        for name, kind in {"attributes": "label-attributes", "generator": "train-generator"}.items()
    }
    summary = {
        "counts": {"val": {"images": 6}},
        "refused": [],
        "warnings": ["boxes may be corners"],
    }
    inputs["ingest"] = make(root, "ingest", summary)
    for path in dataset.folder.iterdir():
        (inputs["ingest"] / path.name).symlink_to(path)
    write_table(attributes, inputs["attributes"] / ATTRIBUTES_NAME)
    steps = [{"step": k, "loss_ldm": 1 / k, "mask_iou": k / 300} for k in range(1, 200)]
    (inputs["generator"] / "metrics.jsonl").write_text(
        "".join(f"{json.dumps(row)}\n" for row in steps)
    )
    for policy in POLICIES:
        found = make_set(root, dataset, attributes, policy, rng)
        inputs |= {
            f"sets/{policy}": found,
            f"scores/{policy}": make_detections(root, policy, found),
        }
    inputs |= {"measures": make_measures(root, rows), "comparison": make_comparison(root, rows)}
    (folder / "out").mkdir()
    given = ReportOptions(**{"preset": "demo", **options})
    return StepContext(given, inputs, folder / "out", folder, "key", root, 1, lambda *report: None)


def test_the_page_shows_everything_of_a_run(context):
    summary = json.loads((context.work / "summary.json").read_text())
    assert summary["results"] == {
        "kid_hard": 0.5,
        "frechet_hard": None,
        "map_real": 0.555,
        "worth_real_hard": "inf",
    }
    page = (context.out / "report.html").read_text()
    assert summary["answers"][0].endswith("it helps")
    assert all(answer in page for answer in summary["answers"])
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert len(page) < 3_000_000
    headings = re.findall(r"<h2>([^<]*)</h2>", page)
    assert headings == [
        "Detectors trained on real and generated images", "Fidelity", "Controllability",
        "The same layouts, real and generated", "Easiest real objects", "Hardest real objects",
        "Failures: generated objects that the independent detector did not find",
        "Likeliest copies of training images", "Training of the generator", "What was run", "Tables to paste",
    ]  # fmt: skip
    captions = re.findall(r"<figcaption>([^<]*)</figcaption>", page)
    assert captions[:4] == ["real", "origin", "easy", "hard"]
    assert sum(text.endswith(": not found") for text in captions) == 8  # hardest objects
    assert page.count('class="marked"') == 3  # a copy in every set
    assert "&lt;ball&gt;" in page
    assert "<td>worth_real_hard</td><td>∞</td>" in page
    assert re.search("<td[^>]*>ingest</td><td[^>]*>boxes may be corners</td>", page)


def test_only_boxes_that_were_asked_for_are_drawn_and_counted(context, dataset, tmp_path):
    sets = {name: SyntheticSet(context.inputs[f"sets/{name}"]) for name in POLICIES}
    wanted = json.loads(sets["hard"].instances.read_text())["annotations"]
    things = dataset.objects.filter(pc.field("is_thing") & (pc.field("split") == "val"))
    assert len(wanted) < things.num_rows  # the protocol leaves small ones out
    layouts = _layouts(dataset, sets)
    for name in ("real", *POLICIES):
        assert sum(len(shown[name].boxes) for shown in layouts) == len(wanted)
    document = json.loads(sets["hard"].instances.read_text())
    left_out = document["annotations"].pop()  # as if the prompt had no room for it
    folder = tmp_path / "hard"
    shutil.copytree(sets["hard"].folder, folder)
    (folder / "instances.json").write_text(json.dumps(document))
    last = _layouts(dataset, sets | {"hard": SyntheticSet(folder)})[left_out["image_id"] - 1]
    assert len(last["hard"].boxes) == len(last["origin"].boxes) - 1
    assert last["hard"].attributes.count("hard") == len(last["hard"].boxes)
    assert last["real"].attributes == last["origin"].attributes
    assert np.allclose(last["real"].boxes[0], last["hard"].boxes[0])
    drawn = {item.image_id: item for item in read_layouts(dataset, None, "val", PROTOCOL)}
    for source, shown in zip(drawn, layouts, strict=True):
        things = drawn[source].boxes_normalized[drawn[source].is_thing]
        assert np.allclose(shown["real"].boxes, things)
    page = (context.out / "report.html").read_text()
    assert f"hard {len(wanted) // 2} of {len(wanted)}" in page


def test_few_layouts_are_said_first(context, dataset, tmp_path):
    assert _warnings(context) == []
    few = make(tmp_path, "synthesize", {"layouts": {"images": 0, "things": 0}})
    found = _warnings(replace(context, inputs={**context.inputs, "sets/hard": few}))
    assert len(found) == 1
    assert found[0].startswith("Mind that the protocol leaves 0 of 6 layouts: ")


@pytest.mark.parametrize(("judge", "is_told"), [("a", True), ("b", False)])
def test_a_judge_that_gave_the_attributes_is_said_to_be_no_other(context, tmp_path, judge, is_told):
    def publish(kind, options, inputs, files=None):
        folder = tmp_path / kind / StepIdentity(kind, {}, options, {}, inputs).key
        folder.mkdir(parents=True)
        make_manifest(folder, kind, {}, options, inputs, files)
        return folder

    def found_by(weights, file):
        digests = {file: weights, "config.py": "same"}
        files = {f"detector/{name}": {"size": 1, "sha256": k} for name, k in digests.items()}
        detector = publish("import-detector", digests, {}, files)
        return publish("detect", {}, {"detector": artifact_name(detector)})

    of_attributes = [artifact_name(found_by(weights, "model.weights")) for weights in ("a", "c")]
    given = {
        "attributes": publish("label-attributes", {}, dict(zip("ac", of_attributes, strict=True))),
        "scores/hard": found_by(judge, "model.safetensors"),
    }
    found = _warnings(replace(context, inputs={**context.inputs, **given}, root=tmp_path))
    assert ["the one that gave the attributes" in text for text in found] == [True] * is_told


def test_the_card_says_the_same_in_short(context):
    card = (context.out / "card.md").read_text()
    assert len(card) < 300_000
    assert card.startswith("# Evaluation\n\n**real+hard against real: +0.017")
    assert "**No result of main/real+easy/2: its training or its detections failed.**" in card
    assert "recall orders easy &gt; origin &gt; hard" not in card  # Markdown, no HTML
    assert "recall orders easy > origin > hard" in card
    assert card.count("data:image/png") == 1


def test_the_page_alone_says_how_long_the_steps_took(context, tmp_path):
    root = shutil.copytree(context.root, tmp_path / "root", symlinks=True)
    for path in root.glob("*/*/manifest.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": 56.78}))
    inputs = {name: root / path.relative_to(context.root) for name, path in context.inputs.items()}
    (tmp_path / "out").mkdir()
    run(replace(context, inputs=inputs, out=tmp_path / "out", root=root))
    other = [
        path.name
        for path in (tmp_path / "out").iterdir()
        if path.read_bytes() != (context.out / path.name).read_bytes()
    ]
    assert other == ["report.html"]
    assert KINDS["report"].timed == {*other}


def test_a_judge_that_finds_nothing_is_said_first(context, rows, tmp_path):
    measures = shutil.copytree(context.inputs["measures"], tmp_path / "measures")
    scores = rows.scores("scorer", dict.fromkeys(("real", "origin"), 0.0))
    write_table(pa.Table.from_pylist(scores), measures / "scores.parquet")
    (tmp_path / "out").mkdir()
    inputs = {**context.inputs, "measures": measures}
    run(replace(context, inputs=inputs, out=tmp_path / "out"))
    told = "The independent detector finds none of the 900 objects in the real images (recall 0)"
    page, card = ((tmp_path / "out" / name).read_text() for name in ("report.html", "card.md"))
    assert page.index(f'<p class="missing">{told}') < page.index("<h2>")
    assert card.index(f"**{told}") < card.index("## Arms")
    assert "finds nothing in real images" in page


def test_an_image_at_the_limit_is_marked_as_it_is_counted(context, dataset, tmp_path):
    copies = [
        {"images": "hard", "image_id": 1, "real_image_id": 1, "distance": distance, "limit": 0.0}
        for distance in (0.0, 0.5)
    ]
    write_table(pa.Table.from_pylist(copies), tmp_path / "copies.parquet")
    changed = replace(context, inputs={**context.inputs, "measures": tmp_path})
    sets = {"hard": SyntheticSet(context.inputs["sets/hard"])}
    pairs = _copy_gallery(changed, dataset, sets).groups
    assert [(pair[0].marked, pair[0].caption) for pair in pairs] == [
        (True, "hard: distance 0, within the limit 0"),
        (False, "hard: distance 0.5, beyond the limit 0"),
    ]


def test_a_run_without_scores_of_the_sets_has_no_failures_to_show(context, dataset):
    inputs = {name: path for name, path in context.inputs.items() if not name.startswith("scores/")}
    sets = {name: SyntheticSet(context.inputs[f"sets/{name}"]) for name in POLICIES}
    assert not _missed_gallery(replace(context, inputs=inputs), dataset, sets).groups
    assert len(_missed_gallery(context, dataset, sets).groups) == 12


def test_the_step_loads_no_model_library():
    code = (
        "import sys, tasks.kinds.report, tasks.kinds.conclude;"
        "print([m for m in ('torch', 'mmdet', 'mmengine', 'diffusers', 'transformers') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
