"""The graph of a run: the one place that knows the whole of it."""

from collections.abc import Iterator, Mapping

from data.artifacts.digests import DigestMemory
from data.artifacts.options import Options
from data.errors import InvalidConfig
from data.ingest.options import IngestConfig, ScenesConfig
from data.layouts.layout import POLICIES, AttributePolicy
from data.vocabulary.tables import Split
from flows.run_config import RunConfig
from models.detector.options import (
    CheckpointConfig,
    DetectionOptions,
    DetectionsFile,
    DetectorConfig,
    DetectorFolder,
    DetectorSource,
    DetectorTraining,
    Fold,
    ScoringConfig,
)
from models.generator.options import SyntheticSetOptions, check_classes
from models.metrics.options import FeatureOptions, MeasureOptions
from tasks.execution.graph import Graph, Node, Step, resolve

STAGES = {
    "ingest": "Read a COCO-format data set, or make Scenes, and write its tables.",
    "train-detector": "Train the detector that tells easy objects from hard ones.",
    "train-scorer": "Train the independent detector that judges generated images.",
    "extract-attributes": "Label every object easy or hard by the detector's success on it.",
    "train-generator": "Fine-tune the layout-conditioned diffusion model.",
    "synthesize": "Generate synthetic COCO data sets at the chosen difficulty.",
    "retrain": "Train detectors on real and on real + synthetic images.",
    "evaluate": "Measure fidelity and trainability and write the report.",
}
"""The groups of steps that users know, and what they do."""

REPORT = "report"
"""Name of a run's last step."""

_INGEST = "ingest"
_ATTRIBUTES = "label attributes"
_GENERATOR = "train generator"
_SCORER = "train scorer"


def run_graph(config: RunConfig, digests: DigestMemory) -> Graph:
    """Build the graph of a run.

    Raises:
        InvalidConfig: options do not go together, or a file cannot be read.
        PipelineError: what an option names outside of the store is not there.
    """
    try:
        _check(config, digests)
        return resolve(list(_nodes(config)), digests)
    except OSError as error:
        raise InvalidConfig(f"{error.filename} cannot be read: {error.strerror}") from error


def stage_steps(graph: Graph, stage: str | None) -> list[Step]:
    """The steps of a stage, or of all.

    Raises:
        InvalidConfig: there is no such stage, or it has nothing to do.
    """
    if stage is not None and stage not in STAGES:
        raise InvalidConfig(f"unknown stage {stage!r}: choose one of {', '.join(STAGES)}")
    steps = graph.of_stage(stage) if stage else list(graph)
    if not steps:
        raise InvalidConfig(f"with these options the stage {stage} has nothing to do")
    return steps


def _check(config: RunConfig, digests: DigestMemory) -> None:
    """Refuse what options and files show to be impossible."""
    splits = config.ingest.splits
    if config.preset.startswith("coco") and not splits:
        raise InvalidConfig(
            f"preset {config.preset} needs your data: give ingest.train and ingest.val, see README"
        )
    if config.synthesize.class_policies:
        for split in splits.values():
            split.require_paths()
        check_classes(config.synthesize.class_policies, config.ingest.thing_names(digests))
    if config.synthesize.attribute_overrides and "real+origin" not in config.retrain.arms:
        raise InvalidConfig(
            "synthesize.attribute_overrides has effect on the arm real+origin alone: add it to retrain.arms"
        )


def _nodes(config: RunConfig) -> Iterator[Node]:
    yield Node(_INGEST, "ingest", "ingest", _ingest_options(config.ingest))
    detector, nodes = _attribute_nodes(config)
    yield from nodes
    yield _training(_SCORER, "train-scorer", config.train_scorer)
    yield Node(
        _GENERATOR,
        "train-generator",
        "train-generator",
        config.train_generator,
        {"ingest": _INGEST, "attributes": _ATTRIBUTES}
        | ({"detector": detector} if detector else {}),
    )
    for policy in POLICIES:
        if f"real+{policy}" in config.retrain.arms:
            yield _set(config, "train", policy)
    for arm in config.retrain.arms:  # the longest way to the end goes first
        for seed in config.retrain.seeds:
            yield from _arm_nodes(config, arm, seed)
    for policy in POLICIES:
        yield _set(config, "val", policy)
    yield _detection(config, "score real", "train-scorer", _SCORER)
    yield from _evaluation_nodes(config)


def _ingest_options(config: IngestConfig) -> IngestConfig:
    """A user's data set is the same whatever Scenes a preset would have made."""
    return config.model_copy(update={"scenes": ScenesConfig()}) if config.splits else config


def _training(
    name: str,
    stage: str,
    config: DetectorConfig,
    *,
    seed: int | None = None,
    fold: Fold | None = None,
    synthetic: str | None = None,
) -> Node:
    given = config.model_dump() | ({} if seed is None else {"seed": seed})
    options = DetectorTraining.model_validate(given | {"fold": fold})
    inputs = {"ingest": _INGEST} | ({"synthetic": synthetic} if synthetic else {})
    return Node(name, stage, "train-detector", options, inputs)


def _detection(
    config: RunConfig,
    name: str,
    stage: str,
    detector: str,
    *,
    split: Split = "val",
    fold: Fold | None = None,
    synthetic: str | None = None,
) -> Node:
    """What a detector finds; weak detections of training images serve nobody."""
    scoring = config.extract_attributes.scoring
    options = DetectionOptions(
        split=split,
        fold=fold,
        score_threshold=scoring.score_threshold if split == "train" else 0.0,
        batch_size=scoring.batch_size if synthetic is None else config.evaluate.batch_size,
    )
    images = {"set": synthetic} if synthetic else {"ingest": _INGEST}
    return Node(name, stage, "detect", options, images | {"detector": detector})


def _attribute_nodes(config: RunConfig) -> tuple[str | None, list[Node]]:
    """The attribute detector's name, where there is one, and the steps that lead to the attributes."""
    stage, scoring = "extract-attributes", config.extract_attributes.scoring
    detector: str | None = None
    nodes: list[Node] = []
    if scoring.results:
        for split, path in (("train", scoring.results.train), ("val", scoring.results.val)):
            options = DetectionsFile.model_validate({"path": path, "split": split})
            inputs = {"ingest": _INGEST}
            nodes.append(Node(f"detect {split}", stage, "import-detections", options, inputs))
    else:
        detector, source = _attribute_detector(config.train_detector, scoring)
        nodes += [source, _detection(config, "detect val", source.stage, detector)]
        nodes += _training_image_nodes(config, detector)
    detections = {
        f"detections/{node.name.removeprefix('detect ')}": node.name
        for node in nodes
        if node.name.startswith("detect ")
    }
    labelling = config.extract_attributes.labelling
    inputs = {"ingest": _INGEST, **detections}
    nodes.append(Node(_ATTRIBUTES, stage, "label-attributes", labelling, inputs))
    return detector, nodes


def _attribute_detector(config: DetectorConfig, scoring: ScoringConfig) -> tuple[str, Node]:
    if scoring.detector is None:
        name = "train detector"
        return name, _training(name, "train-detector", config)
    name, given = "import detector", scoring.detector
    source = given if isinstance(given, CheckpointConfig) else DetectorFolder(folder=given)
    options, inputs = DetectorSource(source=source), {"ingest": _INGEST}
    return name, Node(name, "extract-attributes", "import-detector", options, inputs)


def _training_image_nodes(config: RunConfig, detector: str) -> Iterator[Node]:
    """Detections of the training images, out of fold where there are folds."""
    stage, count = "extract-attributes", config.extract_attributes.scoring.num_folds
    if not count:
        yield _detection(config, "detect train", stage, detector, split="train")
    for number in range(count):
        fold, what = Fold(number=number, of=count), f"fold {number} of {count}"
        trained = f"train detector without {what}"
        yield _training(trained, stage, config.train_detector, fold=fold)
        yield _detection(config, f"detect train {what}", stage, trained, split="train", fold=fold)


def _set_name(split: Split, policy: str) -> str:
    return f"synthesize {split} {policy}"


def _set(config: RunConfig, split: Split, policy: AttributePolicy) -> Node:
    given = config.synthesize
    of_training = {
        "class_policies": given.class_policies,
        "attribute_overrides": given.attribute_overrides if policy == "origin" else None,
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
        protocol=given.protocol(split),
        sampling=given.sampling,
        **(of_training if split == "train" else of_validation),
    )
    inputs = {"ingest": _INGEST, "attributes": _ATTRIBUTES, "generator": _GENERATOR}
    return Node(_set_name(split, policy), "synthesize", "synthesize", options, inputs)


def _arm_nodes(config: RunConfig, arm: str, seed: int) -> Iterator[Node]:
    """An arm's detector, and what it finds in the real validation images."""
    policy = arm.partition("+")[2]
    trained = f"retrain {arm} seed {seed}"
    yield _training(
        trained,
        "retrain",
        config.retrain.detector,
        seed=seed,
        synthetic=_set_name("train", policy) if policy else None,
    )
    yield _detection(config, f"validate {arm} seed {seed}", "retrain", trained)


def _evaluation_nodes(config: RunConfig) -> Iterator[Node]:
    stage, sets = "evaluate", {policy: _set_name("val", policy) for policy in POLICIES}
    yield _features(config, "features real", {"ingest": _INGEST}, "val")
    yield _features(config, "features floor", {"ingest": _INGEST, "like": sets["origin"]}, "train")
    for policy, name in sets.items():
        yield _detection(config, f"score {policy}", stage, _SCORER, synthetic=name)
        yield _features(config, f"features {policy}", {"set": name}, "val")
    inputs = {"ingest": _INGEST, "attributes": _ATTRIBUTES, "detections": "detect val"}
    inputs |= {f"sets/{policy}": name for policy, name in sets.items()}
    inputs |= {f"scores/{name}": f"score {name}" for name in ("real", *sets)}
    inputs |= {f"features/{name}": f"features {name}" for name in ("real", "floor", *sets)}
    inputs |= {
        f"arms/{arm}/{seed}": f"validate {arm} seed {seed}"
        for arm in config.retrain.arms
        for seed in config.retrain.seeds
    }
    options = MeasureOptions(**config.evaluate.model_dump(include=set(MeasureOptions.model_fields)))
    yield Node("measure", stage, "measure", options, inputs)
    inputs = {"ingest": _INGEST, "attributes": _ATTRIBUTES, "generator": _GENERATOR}
    inputs |= {"measures": "measure"}
    inputs |= {f"sets/{policy}": name for policy, name in sets.items()}
    yield Node(REPORT, stage, "report", Options(), inputs)


def _features(config: RunConfig, name: str, inputs: Mapping[str, str], split: Split) -> Node:
    given = config.evaluate
    options = FeatureOptions(
        extractor=given.features,
        inception_weights=given.inception_weights if given.features == "inception" else None,
        resolution=config.train_generator.resolution,
        split=split,
    )
    detector = {"detector": _SCORER} if given.features == "detector" else {}
    return Node(name, "evaluate", "image-features", options, {**inputs, **detector})
