"""The graph of a run: what is shared, what a change makes anew, what is refused at once."""

import json
import time
from contextlib import nullcontext

import pytest
from PIL import Image

from data.artifacts.digests import DigestMemory
from data.artifacts.store import ArtifactStore
from data.errors import InvalidConfig, InvalidDataset, InvalidModel, PipelineError
from data.ingest.ingestion import ingest
from data.ingest.options import IngestConfig, ScenesConfig
from data.layouts.options import PROTOCOLS, Protocol
from flows.presets import merge
from flows.request import Request
from flows.run_config import build_run
from flows.run_graph import STAGES, idle_options, run_graph, stage_steps
from flows.studies import read_study
from flows.study_presets import STUDIES
from tasks.execution.plan import check


def graph_of(overrides=None, preset="smoke"):
    return run_graph(build_run(preset, overrides or {}), DigestMemory())


def new_steps(before, after):
    return {step.name for step in after if step.identity.reference not in before.steps}


def test_every_stage_has_steps_and_the_report_is_the_last():
    graph = graph_of()
    assert all(graph.of_stage(stage) for stage in STAGES)
    assert {stage for step in graph for stage in step.stages} == set(STAGES)
    assert [step.name for step in graph][-1] == "report"


def test_the_attribute_detector_and_the_arm_real_are_one_artifact():
    graph = graph_of()
    detector = graph.find("train detector")
    assert detector is graph.find("retrain real seed 0")
    assert detector.stages == ("train-detector", "retrain")
    assert graph.find("detect val") is graph.find("validate real seed 0")
    assert graph.find("retrain real+hard seed 0") is not detector


@pytest.mark.parametrize(
    ("change", "made"),
    [
        (
            {"retrain": {"seeds": [0, 1]}},
            {"retrain real seed 1", "validate real seed 1", "retrain real+hard seed 1",
             "validate real+hard seed 1", "compare"},
        ),
        (
            {"retrain": {"arms": ["real", "real+hard", "real+easy"]}},
            {"synthesize train easy", "retrain real+easy seed 0", "validate real+easy seed 0",
             "compare"},
        ),
        ({"extract_attributes": {"scoring": {"batch_size": 4}}}, None),
        ({"train_generator": {"probe": {"interval": 0}}}, None),
        ({"retrain": {"detector": {"num_workers": 3}}}, None),
        ({"synthesize": {"sampling": {"batch_size": 3}}}, None),
        ({"evaluate": {"recall_score_threshold": 0.4}}, {"measure"}),
    ],
)  # fmt: skip
def test_a_change_makes_just_the_steps_anew_that_it_concerns(change, made):
    changed = new_steps(graph_of(), graph_of(change))
    assert changed == (set() if made is None else made | {"report"})


EVERY_ARM = [
    "real", "real-repeated", "real+copy-paste", "real+origin", "real+easy", "real+hard",
    "synthetic-only", "more-real",
]  # fmt: skip


def test_every_arm_is_trained_alike_on_what_its_name_says():
    given = {"arms": EVERY_ARM, "budgets": ["iterations", "exposure"], "ruler": [0.5, 2]}
    graph = graph_of({"retrain": given, "ingest": {"scenes": {"num_spare": 48}}})

    def trained(name):
        step = graph.find(f"retrain {name} seed 0")
        differing = {k: v for k, v in step.options.keyed().items() if v != real[k]}
        policy = step.inputs["synthetic"].options.policy if "synthetic" in step.inputs else None
        return differing, policy

    real = graph.find("retrain real seed 0").options.keyed()
    assert {
        name: trained(name) for name in (*EVERY_ARM, "real+hard, equal exposure", "real x 2")
    } == {
        "real": ({}, None),
        "real-repeated": ({"budget": "exposure"}, "hard"),
        "real+copy-paste": ({"augmentation": "copy-paste"}, None),
        "real+origin": ({"images": "real+synthetic"}, "origin"),
        "real+easy": ({"images": "real+synthetic"}, "easy"),
        "real+hard": ({"images": "real+synthetic"}, "hard"),
        "synthetic-only": ({"images": "synthetic"}, "hard"),
        "more-real": ({"images": "real+spare"}, "hard"),
        "real+hard, equal exposure": ({"images": "real+synthetic", "budget": "exposure"}, "hard"),
        "real x 2": ({"real_multiple": 2.0}, None),
    }
    compared = graph.find("compare")
    assert compared.options.contrasts[:2] == (
        ("real-repeated", "real"),
        ("real+copy-paste", "real"),
    )
    assert ("real+easy, equal exposure", "real-repeated") in compared.options.contrasts
    assert "found/main/real x 0.5/0" in compared.inputs


SELF_TRAINING = {"retrain": {"arms": ["real", "self-training"]}}
UNLABELLED = {"ingest": {"scenes": {"num_unlabelled": 30}}}


def test_self_training_is_on_what_the_attribute_detector_is_sure_of():
    threshold = {"pseudo_labels": {"score_threshold": 0.6}}
    graph = graph_of(merge(merge(SELF_TRAINING, UNLABELLED), threshold))
    trained = graph.find("retrain self-training seed 0")
    real = graph.find("retrain real seed 0").options.keyed()
    changed = {k: v for k, v in trained.options.keyed().items() if v != real[k]}
    assert changed == {"images": "real+pseudo"}
    labels, images = (trained.inputs[name] for name in ("pseudo-labels", "unlabelled"))
    assert labels.options.score_threshold == 0.6
    assert labels.inputs["unlabelled"] is images
    assert images.options.num_scenes == 30
    found = labels.inputs["detections"]
    assert found.inputs == {"ingest": images, "detector": graph.find("train detector")}
    assert (found.options.split, found.options.score_threshold) == ("unlabelled", 0.05)
    assert graph.find("compare").options.contrasts == (("self-training", "real"),)
    folds = {"extract_attributes": {"scoring": {"num_folds": 3}}}
    graph = graph_of(merge(merge(SELF_TRAINING, UNLABELLED), folds))
    assert graph.find("detect unlabelled").inputs["detector"] is graph.find("train detector")


PRETRAINING = merge(UNLABELLED, {"pretrain_generator": {"num_steps": 5}})


def test_a_pre_training_is_of_images_without_labels_and_comes_before_the_training():
    graph = graph_of(PRETRAINING)
    trained, pretrained = graph.find("train generator"), graph.find("pre-train generator")
    assert trained.inputs["pretrained"] is pretrained
    assert pretrained.inputs == {
        "ingest": graph.find("ingest"),
        "unlabelled": graph.find("ingest unlabelled"),
        "pseudo-labels": graph.find("pseudo-label"),
    }
    assert (pretrained.options.num_steps, trained.options.num_steps) == (5, 12)
    blank = graph_of(merge(PRETRAINING, {"pretrain_generator": {"boxes": "none"}}))
    assert blank.find("pre-train generator").inputs.keys() == {"ingest", "unlabelled"}
    other = graph_of(
        merge(PRETRAINING, {"extract_attributes": {"labelling": {"score_threshold": 0.9}}})
    )
    assert "pre-train generator" not in new_steps(graph, other)


def test_images_without_labels_leave_all_that_does_not_use_them(tmp_path):
    arm = merge(SELF_TRAINING, UNLABELLED)
    assert graph_of(UNLABELLED).find("compare").identity == graph_of().find("compare").identity
    assert new_steps(graph_of({"retrain": {"arms": ["real"]}}), graph_of(arm)) == {
        "ingest unlabelled", "detect unlabelled", "pseudo-label", "retrain self-training seed 0",
        "validate self-training seed 0", "compare", "report",
    }  # fmt: skip
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    folder = merge(SELF_TRAINING, {"ingest": {"unlabelled": [str(tmp_path)]}})
    before, after = graph_of(folder), graph_of(arm)
    assert before.find("ingest").identity == after.find("ingest").identity
    assert list(before.find("ingest unlabelled").inputs) == ["ingest"]  # of which it leaves out val
    assert not after.find("ingest unlabelled").inputs
    Image.new("RGB", (8, 7)).save(tmp_path / "b.png")
    assert new_steps(before, graph_of(folder)) == {
        "ingest unlabelled", "detect unlabelled", "pseudo-label", "retrain self-training seed 0",
        "validate self-training seed 0", "compare", "report",
    }  # fmt: skip


def test_a_share_of_added_images_is_for_arms_that_have_some():
    mixture = {"added_share": 0.25, "real_only_end": 0.1}
    given = {"arms": EVERY_ARM, "ruler": [2]}
    scenes = {"ingest": {"scenes": {"num_spare": 48}}}
    graph = graph_of({"retrain": given | mixture, **scenes})
    changed = new_steps(graph_of({"retrain": given, **scenes}), graph)
    mixed = {"real+origin", "real+easy", "real+hard", "more-real", "real-repeated"}
    arms = {f"{what} {arm} seed 0" for arm in mixed for what in ("retrain", "validate")}
    assert changed == arms | {"compare", "report"}
    for arm in mixed:
        options = graph.find(f"retrain {arm} seed 0").options
        assert options.model_dump(include=set(mixture)) == mixture
    alone = graph_of({"retrain": {"arms": ["real", "synthetic-only"], "added_share": 1}})
    assert alone.find("retrain synthetic-only seed 0").options.added_share is None


def test_noise_is_in_the_boxes_of_every_arm_and_not_in_the_attribute_detector_s():
    graph = graph_of({"retrain": {"box_noise": 0.05}})
    for arm in ("real", "real+hard"):
        assert graph.find(f"retrain {arm} seed 0").options.box_noise == 0.05
    assert graph.find("train detector").options.box_noise == 0
    with pytest.raises(InvalidConfig, match="box_noise is lost where copy-paste"):
        graph_of({"retrain": {"box_noise": 0.05, "arms": ["real", "real+copy-paste"]}})


def test_arms_are_trained_on_sets_that_the_independent_judge_has_verified():
    given = {"arms": ["real", "real+hard", "real+easy", "synthetic-only"]}
    graph = graph_of({"retrain": given | {"verification": {"action": "refine"}}})
    changed = new_steps(graph_of({"retrain": given}), graph)
    arms = [f"{arm} seed 0" for arm in given["arms"][1:]]
    assert changed == {
        *(f"{what} train {policy}" for policy in ("easy", "hard") for what in ("judge", "verify")),
        *(f"{what} {arm}" for arm in arms for what in ("retrain", "validate")),
        "compare", "report",
    }  # fmt: skip
    hard = graph.find("retrain synthetic-only seed 0").inputs
    assert hard["synthetic"] is graph.find("synthesize train hard")
    assert hard["verified"] is graph.find("verify train hard")
    assert hard["verified"].inputs["set"] is hard["synthetic"]
    judged = graph.find("judge train hard")
    assert judged.inputs == {"detector": graph.find("train scorer"), "set": hard["synthetic"]}
    by_detector = graph_of({"retrain": given | {"verification": {"by": "detector"}}})
    judged = by_detector.find("judge train hard")
    assert judged.inputs["detector"] is by_detector.find("train detector")


def test_a_given_judge_is_there_before_the_training_sets_are_verified(tmp_path):
    for name in ("config.py", "detector.json", "model.safetensors"):
        (tmp_path / name).write_text(name)
    own = {"evaluate": {"scorer": str(tmp_path)}, "retrain": {"verification": {}}}
    graph = graph_of(own)
    judge = graph.find("judge train hard").inputs["detector"]
    assert judge is graph.find("import scorer")
    assert judge.stages == ("synthesize", "evaluate")
    assert "train scorer" not in {name for step in graph for name in step.names}
    with pytest.raises(InvalidConfig, match="that is the detector that gives the attributes"):
        graph_of(merge(own, {"extract_attributes": {"scoring": {"detector": str(tmp_path)}}}))


def test_the_attribute_detector_is_no_independent_judge_however_it_is_given(tmp_path):
    def folder(*parts):
        place = tmp_path.joinpath(*parts)
        place.mkdir(parents=True)
        for name in ("config.py", "detector.json", "model.safetensors"):
            (place / name).write_text(parts[0])
        return str(place)

    def refused(**given):
        with pytest.raises(InvalidConfig, match="that is the detector that gives the attributes"):
            graph_of({"retrain": {"verification": {}}, **given})

    one, other = folder("one"), folder("other")
    again = f"{tmp_path}/other/../one"
    (tmp_path / "link").symlink_to(one)
    attributes = {"extract_attributes": {"scoring": {"detector": one}}}
    config = build_run("smoke", {})
    alike = config.train_detector.model_dump() | {"num_workers": 1}
    refused(train_scorer=alike | {"_delete_": True})
    refused(**attributes, evaluate={"scorer": again})
    refused(**attributes, evaluate={"scorer": str(tmp_path / "link")})
    checkpoints = [{"config": "mmdet::yolox/yolox_s_8xb8-300e_coco.py",
                    "checkpoint": f"{place}/model.safetensors"} for place in (one, again)]  # fmt: skip
    scoring = {"scoring": {"detector": checkpoints[0]}}
    refused(extract_attributes=scoring, evaluate={"scorer": checkpoints[1]})
    trained = graph_of().find("train detector").identity.reference
    refused(evaluate={"scorer": folder("store", *trained.split("/"), "detector")})
    graph_of({"retrain": {"verification": {}}, **attributes, "evaluate": {"scorer": other}})
    given = {"verification": {"by": "detector"}}
    graph_of({"retrain": given, **attributes, "evaluate": {"scorer": one}})


def test_a_verification_needs_a_detector_and_its_detections(results):
    def verified(by, **more):
        return graph_of({"retrain": {"verification": {"by": by}}, **more})

    scoring = {"extract_attributes": {"scoring": {"results": results}}}
    of_sets = dict.fromkeys(("real", "origin", "easy", "hard"), results["val"])
    with pytest.raises(InvalidConfig, match=r"detections of other images: give scoring\.detector"):
        verified("detector", **scoring)
    with pytest.raises(InvalidConfig, match=r"results of other sets: give a detector there"):
        verified("scorer", evaluate={"scorer": of_sets})
    assert verified("scorer", **scoring).find("verify train hard")
    assert verified("detector", evaluate={"scorer": of_sets}).find("verify train hard")
    with pytest.raises(InvalidConfig, match=r"score_threshold 0\.01 is below .* lower the latter"):
        graph_of({"retrain": {"verification": {"score_threshold": 0.01}}})


def test_every_detector_is_compared_and_every_scorer_judges(results):
    second = {
        "num_epochs": 0,
        "num_iterations": 5,
        "config": "mmdet::yolox/yolox_tiny_8xb8-300e_coco.py",
    }
    given = dict.fromkeys(("real", "origin", "easy", "hard"), results["val"])
    graph = graph_of({"retrain": {"others": {"second": second, "none": None}},
                      "evaluate": {"scorers": {"theirs": given, "not": None}}})  # fmt: skip
    assert "found/second/real+hard/0" in graph.find("compare").inputs
    assert graph.find("retrain second real seed 0").options.num_iterations == 5
    scores = {name for name in graph.find("measure").inputs if name.startswith("scores/")}
    scorers = ("scorer", "detector", "theirs")
    assert scores == {
        f"scores/{s}/{i}" for s in scorers for i in ("real", "origin", "easy", "hard")
    }
    assert graph.find("score real by detector") is graph.find("detect val")
    theirs = graph.find("score hard by theirs")
    assert theirs.kind.name == "import-detections"
    assert theirs.inputs["set"] is graph.find("synthesize val hard")


@pytest.mark.parametrize(
    ("group", "name", "message"),
    [
        ("retrain.others", "main", "retrain.detector is called so"),
        (
            "retrain.others",
            "detector",
            "detector_map_real is the mAP of the detector that gives the",
        ),
        ("retrain.others", "Big", "use small letters"),
        ("evaluate.scorers", "scorer", "evaluate.scorer is called so"),
        ("evaluate.scorers", "detector", "the detector that gives the attributes is called so"),
        ("evaluate.scorers", "detector_low", "limits of recalls by detector are called so"),
        ("evaluate.scorers", "theirs_high", "limits of recalls by theirs are called so"),
    ],
)
def test_names_whose_numbers_would_be_those_of_others_are_refused(group, name, message):
    section, option = group.split(".")
    given = {section: {option: {"theirs": None, name: None}}}
    with pytest.raises(InvalidConfig, match=f"'{name}' cannot be a name: {message}"):
        build_run("smoke", given)


def test_a_judge_beside_that_of_the_training_sets_may_be_called_so(tmp_path):
    for name in ("config.py", "detector.json", "model.safetensors"):
        (tmp_path / name).write_text(name)
    judges = {"scorer": str(tmp_path), "scorers": {"judge": str(tmp_path)}}
    graph = graph_of({"evaluate": judges, "retrain": {"verification": {}}})
    assert graph.find("import judge") is graph.find("import judge of training sets")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"contrasts": [["real+easy", "real"]]},
            "contrasts name .'real.easy'.*there are real, real.hard",
        ),
        ({"ruler": [1.0]}, "1 is the arm real"),
        ({"added_share": 1}, "use the arm synthetic-only in place of real.hard"),
        ({"added_share": 0}, "leave the arm real.hard out"),
        (
            {"arms": ["real", "real+copy-paste"], "detector": {"augmentation": "copy-paste"}},
            r" detector.augmentation is copy-paste.* leave that arm out",
        ),
        (
            {
                "arms": ["real", "real+copy-paste"],
                "others": {"theirs": {"augmentation": "copy-paste"}},
            },
            r" others.theirs.augmentation is copy-paste",
        ),
        ({"ruler": [-1.0]}, "multiples are finite and above 0"),
        (
            {"detector": {"num_epochs": 3}},
            "num_epochs is 3 and num_iterations 8: one of them must be 0",
        ),
        ({"detector": {"num_iterations": 0}}, "num_epochs is 0 and num_iterations 0"),
    ],
)
def test_arms_that_cannot_be_compared_are_refused(change, message):
    with pytest.raises(InvalidConfig, match=message):
        build_run("smoke", {"retrain": change})


@pytest.mark.parametrize(
    "option", [{"sampling": {"guidance_scale": 3.0}}, {"image_size": "source"}]
)
def test_a_late_option_leaves_what_is_before_it(option):
    changed = new_steps(graph_of(), graph_of({"synthesize": option}))
    stages = {stage for name in changed for stage in graph_of().find(name).stages}
    assert stages == {"synthesize", "retrain", "evaluate"}
    assert "train detector" not in changed


def test_training_sets_drawn_by_the_renderer_need_no_generator():
    scenes = {"synthesize": {"drawn_by": "scenes", "train_layout_source": "recombined"}}
    before, after = graph_of(), graph_of(scenes)
    drawn = after.find("synthesize train hard")
    assert drawn.inputs.keys() == {"ingest", "attributes"}
    assert drawn.options.layout_source == "recombined"
    assert after.find("synthesize val hard") is not drawn
    for policy in ("origin", "easy", "hard"):
        name = f"synthesize val {policy}"
        assert after.find(name).identity == before.find(name).identity
    assert new_steps(before, after) == {
        "synthesize train hard", "retrain real+hard seed 0", "validate real+hard seed 0", "compare",
        "report",
    }  # fmt: skip
    another = {"sampling": {"guidance_scale": 3.0}, "image_size": "source"}
    changed = graph_of(merge(scenes, {"synthesize": another, "train_generator": {"seed": 1}}))
    assert changed.find("synthesize train hard").identity == drawn.identity
    other = graph_of(merge(scenes, {"synthesize": {"sampling": {"seed": 1}}}))
    assert other.find("synthesize train hard").identity != drawn.identity


def test_sets_that_were_drawn_before_there_was_a_choice_keep_their_keys():
    for name in ("synthesize train hard", "synthesize val hard"):
        options = graph_of().find(name).identity.options
        assert not {"drawn_by", "layout_source", "strength"} & options.keys()


def test_only_training_sets_start_from_real_images():
    before, after = graph_of(), graph_of({"synthesize": {"train_strength": 0.5}})
    assert after.find("synthesize train hard").options.strength == 0.5
    assert new_steps(before, after) == {
        "synthesize train hard", "retrain real+hard seed 0", "validate real+hard seed 0", "compare",
        "report",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_strength": 0}, "greater than 0"),
        ({"train_strength": 1.5}, "less than or equal to 1"),
        ({"train_strength": 0.05}, "0.05 of 3 steps is none: take at least 0.33"),
        ({"train_strength": 0.5, "drawn_by": "scenes"}, "needs drawn_by generator"),
        ({"train_strength": 0.5, "train_layout_source": "jittered"}, "train_layout_source real"),
        ({"train_strength": 0.5, "sampling": {"sampler": "pndm"}}, "pndm cannot start part-way"),
    ],
)
def test_strengths_without_meaning_are_refused(options, message):
    with pytest.raises(InvalidConfig, match=message):
        graph_of({"synthesize": options})


def test_the_renderer_of_scenes_draws_no_other_data_set(tmp_path):
    given = {"ingest": coco(tmp_path), "synthesize": {"drawn_by": "scenes"}}
    with pytest.raises(InvalidConfig, match="drawn_by=scenes draws the embedded data set alone"):
        graph_of(given)


def test_out_of_fold_detectors_are_steps_like_others():
    graph = graph_of({"extract_attributes": {"scoring": {"num_folds": 3}}})
    folds = [graph.find(f"train detector without fold {number} of 3") for number in range(3)]
    assert len({step.identity.key for step in folds}) == 3
    labels = graph.find("label attributes")
    assert {name for name in labels.inputs if name.startswith("detections/train")} == {
        f"detections/train fold {number} of 3" for number in range(3)
    }
    scored = labels.inputs["detections/train fold 1 of 3"]
    assert scored.inputs["detector"] is folds[1]
    assert scored.options.fold == folds[1].options.fold


@pytest.fixture
def results(tmp_path):
    for name in ("train", "val"):
        (tmp_path / f"{name}.json").write_text("[]")
    return {name: str(tmp_path / f"{name}.json") for name in ("train", "val")}


def test_own_detections_need_no_attribute_detector(results):
    other = {"retrain": {"detector": {"learning_rate": 0.02}}}
    own = merge(other, {"extract_attributes": {"scoring": {"results": results}}})
    graph = graph_of(own)
    names = {name for step in graph for name in step.names}
    assert "train detector" not in names
    with pytest.raises(InvalidConfig, match="the stage train-detector has nothing to do"):
        stage_steps(graph, "train-detector")
    assert "detector" not in graph.find("train generator").inputs
    changed = graph_of(merge(own, {"train_detector": {"num_iterations": 99}}))
    assert changed.steps.keys() == graph.steps.keys()


def test_an_own_detector_takes_the_place_of_the_trained_one(tmp_path):
    for name in ("config.py", "detector.json", "model.safetensors"):
        (tmp_path / name).write_text(name)
    graph = graph_of({"extract_attributes": {"scoring": {"detector": str(tmp_path)}}})
    own = graph.find("import detector")
    assert graph.find("detect train").inputs["detector"] is own
    assert graph.find("train generator").inputs["detector"] is own
    assert "train detector" not in {name for step in graph for name in step.names}


@pytest.mark.parametrize("kind", ["folder", "checkpoint", "darknet", "results"])
def test_an_own_judge_takes_the_place_of_the_trained_one(kind, tmp_path, results):
    for name in ("config.py", "detector.json", "model.safetensors", "w.pth", "a.cfg", "names"):
        (tmp_path / name).write_text(name)
    scorer = {
        "folder": str(tmp_path),
        "checkpoint": {"config": "mmdet::yolox/yolox_s_8xb8-300e_coco.py",
                       "checkpoint": str(tmp_path / "w.pth")},
        "darknet": {"cfg": str(tmp_path / "a.cfg"), "weights": str(tmp_path / "w.pth"),
                    "names": str(tmp_path / "names")},
        "results": dict.fromkeys(("real", "origin", "easy", "hard"), results["val"]),
    }[kind]  # fmt: skip
    own = {"evaluate": {"scorer": scorer}}
    graph = graph_of(own)
    assert "train scorer" not in {name for step in graph for name in step.names}
    with pytest.raises(InvalidConfig, match="the stage train-scorer has nothing to do"):
        stage_steps(graph, "train-scorer")
    changed = graph_of(merge(own, {"train_scorer": {"num_iterations": 99}}))
    assert changed.steps.keys() == graph.steps.keys()
    measured = graph.find("measure").inputs
    assert measured.keys() == graph_of().find("measure").inputs.keys()
    for images in ("real", "origin", "easy", "hard"):
        step = graph.find(f"score {images} by scorer")
        assert step is measured[f"scores/scorer/{images}"]
        if kind == "results":
            assert step.kind.name == "import-detections"
        else:
            assert step.inputs["detector"] is graph.find("import scorer")
            assert step.inputs["detector"].kind.name == "import-detector"


def coco(path):
    (path / "images").mkdir()
    for split in ("train", "val"):
        document = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
        (path / f"{split}.json").write_text(json.dumps(document))
    return {
        split: {"instances": str(path / f"{split}.json"), "images": str(path / "images")}
        for split in ("train", "val")
    }


def test_a_data_set_is_the_same_whatever_the_preset_says_of_scenes(tmp_path):
    given = {"ingest": coco(tmp_path)}
    smoke = graph_of(given).find("ingest").identity
    assert graph_of(given, "demo").find("ingest").identity == smoke


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        ({"train_generator": {"base_model": "/no/such"}}, InvalidModel, "base_model '/no/such'"),
        ({"train_scorer": {"config": "mmdet::yolo/x.py"}}, InvalidConfig, "packaged with MMDetection"),
        (
            {"retrain": {"detector": {"pretrained": True, "overrides": {
                "model.backbone.init_cfg": {"type": "Pretrained", "checkpoint": "/no/w.pth"}}}}},
            InvalidConfig, "'/no/w.pth': there is no such file",
        ),
        (
            {"extract_attributes": {"scoring": {"detector": {
                "config": "mmdet::yolox/yolox_s_8xb8-300e_coco.py", "checkpoint": "no.pth"}}}},
            InvalidModel, "checkpoint no.pth",
        ),
        ({"extract_attributes": {"scoring": {"detector": "nowhere"}}}, InvalidModel, "nowhere"),
        (
            {"extract_attributes": {"scoring": {"results": {"train": "no.json", "val": "no.json"}}}},
            InvalidDataset, "detections no.json",
        ),
        (
            {"evaluate": {"features": "inception", "inception_weights": "no.pth"}},
            InvalidModel, "inception_weights no.pth",
        ),
        ({"synthesize": {"class_policies": {"dragon": "easy"}}}, InvalidConfig, "dragon"),
        (
            {"synthesize": {"attribute_overrides": "no.parquet"}},
            InvalidConfig, "the arm real.origin alone",
        ),
        (
            {"synthesize": {"attribute_overrides": "no.parquet"},
             "retrain": {"arms": ["real+origin"]}},
            InvalidDataset, "no.parquet",
        ),
        ({"train_generator": {"optimizer": "adamw-8bit"}}, InvalidConfig, "pip install bitsandbytes"),
        ({"ingest": {"train": {"instances": "no.json", "images": "."}}}, InvalidDataset, "ingest.val"),
        (SELF_TRAINING, InvalidConfig, "needs images without labels: .* ingest.unlabelled"),
        (
            {"retrain": {"arms": ["real", "more-real"]}},
            InvalidConfig, "the arm more-real needs spare real images: .* ingest.scenes.num_spare",
        ),
        ({"retrain": {"ruler": [0.5, 1.5]}}, InvalidConfig, "retrain.ruler 1.5 needs spare real images"),
        (
            {"retrain": {"ruler": [3]}, "ingest": {"scenes": {"num_spare": 90}}},
            InvalidConfig, "3 times the 48 training images are 144, and there are 138 with the spare",
        ),
        (
            {"pretrain_generator": {"num_steps": 5, "boxes": "none"}},
            InvalidConfig, "pretrain_generator.num_steps needs images without labels",
        ),
        (
            merge(PRETRAINING, {"ingest": {"tile": {"size": 32}}}),
            InvalidConfig, "leave it or ingest.unlabelled out",
        ),
        (
            merge(SELF_TRAINING, {"ingest": {"unlabelled": ["nowhere"]}}),
            InvalidDataset, "nowhere does not exist .* ingest.unlabelled",
        ),
        (
            merge(merge(SELF_TRAINING, UNLABELLED), {"extract_attributes": {"scoring": {"results": {
                "train": "no.json", "val": "no.json"}}}}),
            InvalidConfig, "the arm self-training needs a detector",
        ),
        (
            merge(merge(SELF_TRAINING, UNLABELLED), {"pseudo_labels": {"score_threshold": 0.01}}),
            InvalidConfig, "0.01 is below extract_attributes.scoring.score_threshold 0.05",
        ),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_before_anything_runs(overrides, error, message):
    started = time.process_time()
    with pytest.raises(error, match=message):
        graph_of(overrides)
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    ("overrides", "is_told"),
    [
        ({}, False),
        ({"layouts": {"max_objects": 20}}, True),
        ({"layouts": "lama-val"}, True),
        ({"layouts": {"max_objects": 20}, "synthesize": {"val_layouts": "run"}}, True),
        ({"layouts": {"max_objects": 20}, "synthesize": {"train_layouts": "run"}}, False),
    ],
)
def test_a_rule_for_layouts_that_does_not_reach_those_drawn_is_named(overrides, is_told):
    line = "layouts leaves synthesize.train_layouts as the preset has it: change it too"
    assert idle_options([build_run("coco-512", overrides)]) == ([line] if is_told else [])
    assert idle_options([build_run("fine-tune", overrides)]) == []


@pytest.mark.parametrize(
    ("overrides", "idle"),
    [
        ({}, []),
        ({"retrain": {"verification": {}, "added_share": 0.5, "real_only_end": 0.1}}, []),
        (
            {"retrain": {"verification": {}, "added_share": 0.5, "real_only_end": 0.1, "arms": ["real"]}},
            ["retrain.verification", "retrain.added_share", "retrain.real_only_end"],
        ),
        (
            {"retrain": {"added_share": 0.5, "verification": {}, "arms": ["real", "more-real"]}}, [],
        ),
        ({"retrain": {"box_noise": 0.1, "arms": ["synthetic-only"]}}, ["retrain.box_noise"]),
        ({"retrain": {"box_noise": 0.1, "arms": ["synthetic-only"], "ruler": [0.5]}}, []),
        ({"pseudo_labels": {"score_threshold": 0.6}}, ["pseudo_labels"]),
        (merge(SELF_TRAINING, {"pseudo_labels": {"score_threshold": 0.6}}), []),
        (merge(PRETRAINING, {"pseudo_labels": {"score_threshold": 0.6}}), []),
        ({"pretrain_generator": {"boxes": "none"}}, ["pretrain_generator"]),
        (UNLABELLED, ["ingest.scenes.num_unlabelled"]),
        ({"ingest": {"unlabelled": ["folder"]}}, ["ingest.unlabelled"]),
        (merge(SELF_TRAINING, UNLABELLED), []),
        (merge(PRETRAINING, {"pretrain_generator": {"boxes": "none"}}), []),
        ({"ingest": {"scenes": {"num_spare": 9}}}, ["ingest.scenes.num_spare"]),
        ({"ingest": {"spare": {"instances": "a.json", "images": "a"}}}, ["ingest.spare"]),
        ({"ingest": {"scenes": {"num_spare": 9}}, "retrain": {"arms": ["more-real"]}}, []),
        ({"ingest": {"scenes": {"num_spare": 9}}, "retrain": {"ruler": [0.5, 1.1]}}, []),
        ({"ingest": {"scenes": {"num_spare": 9}}, "retrain": {"ruler": [0.5]}},
         ["ingest.scenes.num_spare"]),
        (
            {"train_generator": {"lora_learning_rate": 2e-4}},
            ["train_generator.lora_learning_rate"],
        ),
        ({"train_generator": {"lora_learning_rate": 2e-4, "lora_rank": 4}}, []),
    ],
)  # fmt: skip
def test_options_without_effect_are_named(overrides, idle):
    found = idle_options([build_run("smoke", overrides)])
    assert [line.partition(" has no effect without ")[0] for line in found] == idle


@pytest.mark.parametrize("name", STUDIES)
def test_no_study_gives_options_without_effect(name):
    assert idle_options(read_study(name).runs.values()) == []


def test_an_option_that_one_run_of_a_study_uses_has_effect():
    used, unused = (
        build_run("smoke", {"retrain": {"added_share": 0.5, "arms": arms}})
        for arms in (["real", "real+hard"], ["real"])
    )
    assert idle_options([used, unused]) == []
    assert len(idle_options([unused, build_run("smoke", {})])) == 1


@pytest.fixture(scope="module")
def with_spare(tmp_path_factory):
    """Folder of an ingested data set of 12 training images and 5 spare ones."""
    folder = tmp_path_factory.mktemp("with_spare")
    ingest(IngestConfig(scenes=ScenesConfig(num_train=12, num_val=1, num_spare=5)), folder)
    return folder


@pytest.mark.parametrize(
    ("synthesize", "action", "wanted"),
    [
        ({}, None, 8),
        ({"num_train_layouts": 5}, None, None),
        ({"num_train_layouts": 40}, None, 12),
        ({"num_train_layouts": 40, "train_layout_source": "jittered"}, None, 40),
        ({"num_train_layouts": 3, "images_per_train_layout": 2}, None, 6),
        ({}, "drop-object", 8),
        ({}, "drop-image", None),
    ],
)
def test_too_few_spare_images_are_refused_as_soon_as_the_tables_are_there(
    synthesize, action, wanted, with_spare, tmp_path, publish_tables
):
    verification = {"verification": {"action": action}} if action else {}
    given = {"ingest": {"scenes": {"num_spare": 5}}, "synthesize": synthesize}
    arms = {"arms": ["real", "more-real"], **verification}
    store, graph = ArtifactStore(tmp_path), graph_of({**given, "retrain": arms})
    check(store, graph)  # nothing is known yet
    publish_tables(store, graph, with_spare)
    refusal = pytest.raises(InvalidConfig, match=f"the synthetic set has, {wanted}: there are 5")
    with refusal if wanted else nullcontext():
        check(store, graph)


def layout_rules(overrides):
    graph = graph_of(overrides)
    return {
        "generator": graph.find("train generator").options.protocol,
        "trained on": graph.find("synthesize val hard").options.trained_on,
        "train": graph.find("synthesize train hard").options.protocol,
        "val": graph.find("synthesize val hard").options.protocol,
        "measure": graph.find("measure").options.protocol,
    }


def test_one_rule_for_layouts_reaches_all_who_use_layouts():
    rule = Protocol(min_area_fraction=0.1, max_objects=5)
    rules = layout_rules({"layouts": {"min_area_fraction": 0.1, "max_objects": 5}})
    assert rules == dict.fromkeys(rules, rule)


def test_another_rule_is_for_those_who_are_given_it():
    given = {"_delete_": True, "max_objects": 2}
    rules = layout_rules({"layouts": "lama-val", "synthesize": {"val_layouts": given}})
    lama, other = PROTOCOLS["lama-val"], Protocol(max_objects=2)
    assert rules == {
        "generator": lama,
        "trained on": lama,
        "train": lama,
        "val": other,
        "measure": other,
    }


@pytest.mark.parametrize(
    ("given", "place", "changed"),
    [
        ({"layouts": {"max_objects": 5}}, "generator", {"max_objects": 5}),
        ({"train_generator": {"layouts": {"min_objects": 4}}}, "generator", {"min_objects": 4}),
        ({"synthesize": {"train_layouts": {"max_objects": 6}}}, "train", {"max_objects": 6}),
        ({"synthesize": {"val_layouts": {"counted": "things"}}}, "val", {"counted": "things"}),
    ],
)
def test_a_part_of_a_rule_leaves_the_others_as_they_are(given, place, changed):
    rules = layout_rules(merge({"layouts": "lama-val"}, given))
    assert rules[place] == PROTOCOLS["lama-val"].model_copy(update=changed)


@pytest.mark.parametrize("preset", ["fine-tune", "coco-512"])
def test_a_preset_for_data_without_data_is_refused(preset):
    with pytest.raises(InvalidConfig, match=r"needs your data: give ingest\.train"):
        graph_of(preset=preset)


@pytest.mark.parametrize(
    "overrides",
    [
        {"layouts": {"min_area_fraction": 0.99}},
        {"train_generator": {"layouts": {"min_area_fraction": 0.99}}},
        {"synthesize": {"train_layouts": {"min_objects": 50}}},
    ],
)
def test_a_rule_that_leaves_no_layout_is_refused_as_soon_as_the_tables_are_there(
    overrides, ingested, tmp_path, publish_tables
):
    store, graph = ArtifactStore(tmp_path), graph_of(overrides)
    check(store, graph)  # nothing is known yet
    identity = publish_tables(store, graph, ingested)
    started = time.process_time()
    with pytest.raises(PipelineError, match="has a usable layout"):
        check(store, graph)
    assert time.process_time() - started < 2
    (store.root / identity.reference / "objects.parquet").write_text("damaged")
    check(store, graph)  # it will be made again first


def test_a_run_goes_on_without_the_detectors_that_were_lost(tmp_path, publish):
    broken = {"overrides": {"model.backbone.type": "NoSuchNet"}}
    config = build_run("smoke", {"retrain": {"others": {"broken": broken}}})
    request = Request("run", "smoke", config)
    store, digests = ArtifactStore(tmp_path), DigestMemory()
    for step in request.graph(digests):
        if step.kind.name not in {"compare", "report"} and "broken" not in step.name:
            publish(store, step.identity)
    lost = request.lost_detectors(digests, store)
    compare = request.graph(digests, lost).find("compare")
    assert compare.options.missing == ("broken/real/0", "broken/real+hard/0")
    assert not [name for name in compare.inputs if "broken" in name]
