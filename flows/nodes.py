"""Steps of a run, group by group; `run_graph` puts them together."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data.errors import InvalidConfig
from data.ingest.options import IngestConfig, ScenesConfig
from data.layouts.options import POLICIES, AttributePolicy
from data.vocabulary.splits import Split
from flows.arms import TrainedArm, training_policies
from flows.run_config import (
    GivenScorer,
    RunConfig,
    ScorerResults,
    changes_to_preset,
)
from models.detector.given_options import (
    CheckpointConfig,
    DarknetConfig,
    DetectionOptions,
    DetectionsFile,
    DetectorFolder,
    DetectorSource,
    ScoringConfig,
)
from models.detector.options import DetectorConfig, DetectorTraining, Fold
from models.generator.drawing_options import SamplingConfig, SyntheticSetOptions
from models.generator.options import pretraining_options
from models.metrics.options import (
    DETECTOR,
    SCORER,
    ComparisonOptions,
    FeatureOptions,
    MeasureOptions,
    ReportOptions,
)
from tasks.execution.graph import Node

REPORT = "report"
"""Name of a run's last step."""

INGEST = "ingest"
_UNLABELLED = "ingest unlabelled"
_PSEUDO_LABELS = "pseudo-label"
_ATTRIBUTES = "label attributes"
_PRETRAINING = "pre-train generator"
_GENERATOR = "train generator"
TRAINED_SCORER = "train scorer"


def ingest_options(config: IngestConfig) -> IngestConfig:
    """The labelled images alone; a user's are the same whatever Scenes a preset would have made."""
    labelled = config.scenes.model_copy(update={"num_unlabelled": 0})
    scenes = ScenesConfig() if config.splits else labelled
    return config.model_copy(update={"scenes": scenes, "unlabelled": ()})


def training_node(
    name: str,
    stage: str,
    config: DetectorConfig,
    sets: Mapping[str, str] | None = None,
    **more: Any,
) -> Node:
    """A detector's training.

    Args:
        sets: synthetic and verified set by the input's name.
        more: options over the detector's.
    """
    options = DetectorTraining.model_validate(config.model_dump() | more)
    inputs = {"ingest": INGEST, **(sets or {})}
    if options.images == "real+pseudo":
        inputs |= {"unlabelled": _UNLABELLED, "pseudo-labels": _PSEUDO_LABELS}
    return Node(name, stage, "train-detector", options, inputs)


def detection_node(
    config: RunConfig,
    name: str,
    stage: str,
    detector: str,
    *,
    split: Split = "val",
    fold: Fold | None = None,
    synthetic: str | None = None,
) -> Node:
    """What a detector finds; weak detections serve nobody but COCO's metrics."""
    scoring = config.extract_attributes.scoring
    options = DetectionOptions(
        split=split,
        fold=fold,
        score_threshold=0.0 if split == "val" else scoring.score_threshold,
        batch_size=scoring.batch_size if synthetic is None else config.evaluate.batch_size,
        execution=config.execution,
    )
    real = _UNLABELLED if split == "unlabelled" else INGEST
    images = {"set": synthetic} if synthetic else {"ingest": real}
    return Node(name, stage, "detect", options, images | {"detector": detector})


def attribute_nodes(config: RunConfig) -> tuple[str | None, list[Node]]:
    """The attribute detector's name, where there is one, and the steps that lead to the attributes."""
    stage, scoring = "extract-attributes", config.extract_attributes.scoring
    detector: str | None = None
    nodes: list[Node] = []
    if scoring.results:
        for split, path in (("train", scoring.results.train), ("val", scoring.results.val)):
            options = DetectionsFile.model_validate({"path": path, "split": split})
            inputs = {"ingest": INGEST}
            nodes.append(Node(f"detect {split}", stage, "import-detections", options, inputs))
    else:
        detector, source = _attribute_detector(config.train_detector, scoring)
        nodes += [source, detection_node(config, "detect val", source.stage, detector)]
        nodes += _training_image_nodes(config, detector)
    detections = {
        f"detections/{node.name.removeprefix('detect ')}": node.name
        for node in nodes
        if node.name.startswith("detect ")
    }
    labelling = config.extract_attributes.labelling
    inputs = {"ingest": INGEST, **detections}
    nodes.append(Node(_ATTRIBUTES, stage, "label-attributes", labelling, inputs))
    return detector, nodes


def _attribute_detector(config: DetectorConfig, scoring: ScoringConfig) -> tuple[str, Node]:
    if scoring.detector is None:
        name = "train detector"
        return name, training_node(name, "train-detector", config)
    name, given = "import detector", scoring.detector
    source = DetectorFolder(folder=given) if isinstance(given, Path) else given
    options, inputs = DetectorSource(source=source), {"ingest": INGEST}
    return name, Node(name, "extract-attributes", "import-detector", options, inputs)


def _training_image_nodes(config: RunConfig, detector: str) -> Iterator[Node]:
    """Detections of the training images, out of fold where there are folds."""
    stage, count = "extract-attributes", config.extract_attributes.scoring.num_folds
    if not count:
        yield detection_node(config, "detect train", stage, detector, split="train")
    for number in range(count):
        fold, what = Fold(number=number, of=count), f"fold {number} of {count}"
        trained = f"train detector without {what}"
        yield training_node(trained, stage, config.train_detector, fold=fold)
        yield detection_node(
            config, f"detect train {what}", stage, trained, split="train", fold=fold
        )


def unlabelled_nodes(
    config: RunConfig, detector: str | None, arms: Collection[str]
) -> Iterator[Node]:
    """The images without labels where something needs them, and their labels by the attribute detector.

    Raises:
        InvalidConfig: there are no such images, no detector, or it keeps less than the labels need.
    """
    pretraining = config.pretrain_generator
    labelled = {
        "the arm self-training": "self-training" in arms,
        "pretrain_generator.boxes=pseudo": pretraining.num_steps and pretraining.boxes == "pseudo",
    }
    needing = [what for what, needs in labelled.items() if needs]
    if not (needing or pretraining.num_steps):
        return
    images, scoring = config.ingest.unlabelled_images, config.extract_attributes.scoring
    if images is None:
        raise InvalidConfig(
            f"{needing[0] if needing else 'pretrain_generator.num_steps'} needs images without labels: give "
            "folders of them as ingest.unlabelled (of Scenes their number, ingest.scenes.num_unlabelled), or "
            "leave it out"
        )
    if config.ingest.tile:
        raise InvalidConfig(
            "ingest.tile cuts labelled images alone: leave it or ingest.unlabelled out"
        )
    held_out = {"ingest": INGEST} if images.folders else {}
    yield Node(_UNLABELLED, "ingest", "ingest-unlabelled", images, held_out)
    if not needing:
        return
    if detector is None:
        raise InvalidConfig(
            f"{needing[0]} needs a detector that looks at ingest.unlabelled, and "
            "extract_attributes.scoring.results gives detections alone: give scoring.detector in its place, "
            "or leave it out"
        )
    if config.pseudo_labels.score_threshold < scoring.score_threshold:
        raise InvalidConfig(
            f"pseudo_labels.score_threshold {config.pseudo_labels.score_threshold} is below "
            f"extract_attributes.scoring.score_threshold {scoring.score_threshold}: lower the latter too"
        )
    stage, found = "extract-attributes", "detect unlabelled"
    yield detection_node(config, found, stage, detector, split="unlabelled")
    inputs = {"ingest": INGEST, "unlabelled": _UNLABELLED, "detections": found}
    yield Node(_PSEUDO_LABELS, stage, "pseudo-label", config.pseudo_labels, inputs)


def generator_nodes(config: RunConfig, detector: str | None) -> Iterator[Node]:
    """The generator, and before it where there is one its pre-training."""
    stage, protocol = "train-generator", config.protocol("generator")
    options = config.train_generator.model_copy(update={"layouts": protocol})
    inputs = {"ingest": INGEST, "attributes": _ATTRIBUTES}
    inputs |= {"detector": detector} if detector else {}
    if config.pretrain_generator.num_steps:
        images = {"unlabelled": _UNLABELLED}
        if config.pretrain_generator.boxes == "pseudo":
            images["pseudo-labels"] = _PSEUDO_LABELS
        changed = pretraining_options(options, config.pretrain_generator)
        yield Node(_PRETRAINING, stage, "train-generator", changed, {"ingest": INGEST, **images})
        inputs["pretrained"] = _PRETRAINING
    yield Node(_GENERATOR, stage, "train-generator", options, inputs)


def _set_name(split: Split, policy: str) -> str:
    return f"synthesize {split} {policy}"


def set_node(config: RunConfig, split: Split, policy: AttributePolicy) -> Node:
    """A synthetic set."""
    given = config.synthesize
    inputs = {"ingest": INGEST, "attributes": _ATTRIBUTES, "generator": _GENERATOR}
    drawing: dict[str, Any] = {
        "image_size": given.image_size,
        "sampling": given.sampling,
        "torch_compile": given.torch_compile,
    }
    if split == "train" and given.drawn_by == "scenes":
        del inputs["generator"]
        sampling = SamplingConfig(seed=given.sampling.seed)
        drawing = {"drawn_by": "scenes", "image_size": "source", "sampling": sampling}
    of_training = {
        "class_policies": given.class_policies,
        "attribute_overrides": given.attribute_overrides if policy == "origin" else None,
        "layout_source": given.train_layout_source,
        "strength": given.train_strength,
        "num_layouts": given.num_train_layouts,
        "images_per_layout": given.images_per_train_layout,
    }
    of_validation = {
        "num_layouts": given.num_val_layouts,
        "images_per_layout": given.images_per_val_layout,
    }
    options = SyntheticSetOptions(
        split=split,
        policy=policy,
        protocol=config.protocol(split),
        trained_on=config.protocol("generator"),
        execution=config.execution,
        **drawing,
        **(of_training if split == "train" else of_validation),
    )
    return Node(_set_name(split, policy), "synthesize", "synthesize", options, inputs)


def training_set_nodes(config: RunConfig, detector: str | None) -> Iterator[Node]:
    """The synthetic training sets, and what is left of their labels.

    Args:
        detector: name of the attribute detector's step, where there is one.
    """
    stage, options = "synthesize", config.retrain.verification
    given, judge = config.evaluate.scorer, TRAINED_SCORER
    policies = training_policies(config.retrain)
    if options and options.by == "detector" and detector:
        judge = detector
    elif options and policies and given and not isinstance(given, ScorerResults):
        judge = "import judge of training sets"  # evaluate.scorers may have a "judge"
        yield _given_scorer(judge, stage, given)
    for policy in policies:
        drawn = _set_name("train", policy)
        yield set_node(config, "train", policy)
        if options:
            found = f"judge train {policy}"
            yield detection_node(config, found, stage, judge, split="train", synthetic=drawn)
            inputs = {"set": drawn, "detections": found}
            yield Node(_verified_name(policy), stage, "verify-set", options, inputs)


def _verified_name(policy: str) -> str:
    return f"verify train {policy}"


def arm_nodes(config: RunConfig, arm: TrainedArm) -> Iterator[Node]:
    """An arm's detector, and what it finds in the real validation images."""
    detector = config.retrain.detectors[arm.detector]
    sets = {"synthetic": _set_name("train", arm.policy)} if arm.policy else {}
    if arm.policy and config.retrain.verification:
        sets["verified"] = _verified_name(arm.policy)
    trained = f"retrain {arm.step}"
    options = {"seed": arm.seed, **arm.options}
    if arm.options.get("images") != "synthetic":
        options["box_noise"] = config.retrain.box_noise
    yield training_node(trained, "retrain", detector, sets, **options)
    yield detection_node(config, f"validate {arm.step}", "retrain", trained)


def fidelity_nodes(config: RunConfig, detector: str | None) -> Iterator[Node]:
    """What is measured of the synthetic validation sets.

    Args:
        detector: name of the attribute detector's step, where there is one.
    """
    sets = {policy: _set_name("val", policy) for policy in POLICIES}
    scorers = _scorers(config, detector)
    for name, source in scorers.items():
        yield from _scoring_nodes(config, name, source, sets)
    features = {f"features {policy}": {"set": name} for policy, name in sets.items()}
    yield _features(config, "features real", {"ingest": INGEST}, "val")
    yield _features(config, "features train", {"ingest": INGEST}, "train")
    for name, inputs in features.items():
        yield _features(config, name, inputs, "val")
    shown = ("real", *sets)
    inputs = {"ingest": INGEST, "attributes": _ATTRIBUTES, "detections": "detect val"}
    inputs |= {f"sets/{policy}": name for policy, name in sets.items()}
    inputs |= {
        f"scores/{s}/{images}": f"score {images} by {s}" for s in scorers for images in shown
    }
    inputs |= {f"features/{images}": f"features {images}" for images in ("train", *shown)}
    given = config.evaluate.model_dump(include=set(MeasureOptions.model_fields))
    options = MeasureOptions.model_validate(given | {"protocol": config.protocol("val")})
    yield Node("measure", "evaluate", "measure", options, inputs)


def _scorers(config: RunConfig, detector: str | None) -> dict[str, str | GivenScorer]:
    """Who judges generated images: a detector's step, or what the user gives."""
    given = {name: item for name, item in config.evaluate.scorers.items() if item is not None}
    scorer = config.evaluate.scorer or TRAINED_SCORER
    return {SCORER: scorer, **({DETECTOR: detector} if detector else {}), **given}


def _scoring_nodes(
    config: RunConfig, name: str, source: str | GivenScorer, sets: Mapping[AttributePolicy, str]
) -> Iterator[Node]:
    """What a scorer finds in the real images and in each set."""
    if not isinstance(source, str | ScorerResults):
        node = _given_scorer(f"import {name}", "evaluate", source)
        source = node.name
        yield node
    of_images = {"real": None} | {str(policy): name for policy, name in sets.items()}
    for images, synthetic in of_images.items():
        scored, stage = f"score {images} by {name}", "evaluate"
        if isinstance(source, ScorerResults):
            inputs = {"ingest": INGEST} | ({"set": synthetic} if synthetic else {})
            file = DetectionsFile(path=getattr(source, images), split="val")
            yield Node(scored, stage, "import-detections", file, inputs)
        else:
            if source == TRAINED_SCORER and synthetic is None:
                stage = "train-scorer"
            yield detection_node(config, scored, stage, source, synthetic=synthetic)


def _given_scorer(name: str, stage: str, given: Path | CheckpointConfig | DarknetConfig) -> Node:
    source = DetectorFolder(folder=given) if isinstance(given, Path) else given
    options = DetectorSource(source=source, all_classes=True)
    return Node(name, stage, "import-detector", options, {"ingest": INGEST})


def _features(config: RunConfig, name: str, inputs: Mapping[str, str], split: Split) -> Node:
    """Features of a set, or of the images of a split.

    The generator has learnt from the training images and their mirror images; a copy is of either.
    """
    given = config.evaluate
    options = FeatureOptions(
        extractor=given.features,
        inception_weights=given.inception_weights if given.features == "inception" else None,
        resolution=config.train_generator.resolution,
        split=split,
        mirrored=split != "train",
        execution=config.execution,
    )
    return Node(name, "evaluate", "image-features", options, inputs)


def comparison_node(
    config: RunConfig, arms: Sequence[TrainedArm], missing: Collection[str]
) -> Node:
    """The comparison of the trained detectors."""
    inputs = {"ingest": INGEST}
    inputs |= {f"trained/{arm.place}": f"retrain {arm.step}" for arm in arms}
    inputs |= {f"found/{arm.place}": f"validate {arm.step}" for arm in arms}
    options = ComparisonOptions(contrasts=config.retrain.asked, missing=tuple(missing))
    return Node("compare", "evaluate", "compare", options, inputs)


def report_node(config: RunConfig) -> Node:
    """The run's last step."""
    sets = {f"sets/{policy}": _set_name("val", policy) for policy in POLICIES}
    inputs = {"ingest": INGEST, "attributes": _ATTRIBUTES, "generator": _GENERATOR}
    inputs |= {"measures": "measure", "comparison": "compare", **sets}
    inputs |= {f"scores/{policy}": f"score {policy} by {SCORER}" for policy in POLICIES}
    options = ReportOptions(preset=config.preset, changes=changes_to_preset(config))
    return Node(REPORT, "evaluate", "report", options, inputs)
