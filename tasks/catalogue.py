"""The kinds of steps that there are."""

from data.attributes.options import AttributeConfig, PseudoLabelConfig, VerificationOptions
from data.ingest.options import IngestConfig, UnlabelledConfig
from models.detector import options as detector
from models.detector.given_options import DetectionOptions, DetectionsFile, DetectorSource
from models.generator import options as generator
from models.generator.drawing_options import SyntheticSetOptions
from models.metrics.options import (
    ComparisonOptions,
    ConclusionOptions,
    FeatureOptions,
    MeasureOptions,
    ReportOptions,
)
from tasks.kind import Kind

_DETECTOR = {"detector": detector.CODE_VERSION}
_GENERATOR = {"generator": generator.CODE_VERSION}

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            "ingest",
            "tasks.kinds.ingest",
            IngestConfig,
            versions={"step": 8},
            share=1.0,
            preload=False,
        ),
        Kind(
            "ingest-unlabelled",
            "tasks.kinds.ingest_unlabelled",
            UnlabelledConfig,
            {"ingest": "optional"},
            {"step": 2},
            share=1.0,
            preload=False,
        ),
        Kind(
            "train-detector",
            "tasks.kinds.train_detector",
            detector.DetectorTraining,
            {
                "ingest": "one",
                "synthetic": "optional",
                "verified": "optional",
                "unlabelled": "optional",
                "pseudo-labels": "optional",
            },
            {"step": 3} | _DETECTOR,
        ),
        Kind(
            "import-detector",
            "tasks.kinds.import_detector",
            DetectorSource,
            {"ingest": "one"},
            {"step": 1} | _DETECTOR,
        ),
        Kind(
            "detect",
            "tasks.kinds.detect",
            DetectionOptions,
            {"detector": "one", "ingest": "optional", "set": "optional"},
            {"step": 2} | _DETECTOR,
        ),
        Kind(
            "import-detections",
            "tasks.kinds.import_detections",
            DetectionsFile,
            {"ingest": "one", "set": "optional"},
            {"step": 3},
        ),
        Kind(
            "label-attributes",
            "tasks.kinds.label_attributes",
            AttributeConfig,
            {"ingest": "one", "detections": "many"},
        ),
        Kind(
            "pseudo-label",
            "tasks.kinds.pseudo_label",
            PseudoLabelConfig,
            {"ingest": "one", "unlabelled": "one", "detections": "one"},
            preload=False,
        ),
        Kind(
            "train-generator",
            "tasks.kinds.train_generator",
            generator.GeneratorConfig,
            {
                "ingest": "one",
                "attributes": "optional",
                "detector": "optional",
                "unlabelled": "optional",
                "pseudo-labels": "optional",
                "pretrained": "optional",
            },
            {"step": 3} | _GENERATOR,
            share=1.0,
        ),
        Kind(
            "synthesize",
            "tasks.kinds.synthesize",
            SyntheticSetOptions,
            {"ingest": "one", "attributes": "one", "generator": "optional"},
            {"step": 4} | _GENERATOR,
        ),
        Kind(
            "verify-set",
            "tasks.kinds.verify_set",
            VerificationOptions,
            {"set": "one", "detections": "one"},
            preload=False,
        ),
        Kind(
            "image-features",
            "tasks.kinds.image_features",
            FeatureOptions,
            {"ingest": "optional", "set": "optional"},
            {"step": 3},
        ),
        Kind(
            "measure",
            "tasks.kinds.measure",
            MeasureOptions,
            {
                "ingest": "one",
                "attributes": "one",
                "detections": "one",
                "sets": "many",
                "scores": "many",
                "features": "many",
            },
            {"step": 10},
            preload=False,
        ),
        Kind(
            "compare",
            "tasks.kinds.compare",
            ComparisonOptions,
            {"ingest": "one", "trained": "many", "found": "many"},
            {"step": 8},
            preload=False,
        ),
        Kind(
            "report",
            "tasks.kinds.report",
            ReportOptions,
            {
                "ingest": "one",
                "attributes": "one",
                "generator": "one",
                "measures": "one",
                "comparison": "one",
                "sets": "many",
                "scores": "many",
            },
            {"step": 5},
            preload=False,
            timed=frozenset({"report.html"}),
        ),
        Kind(
            "conclude",
            "tasks.kinds.conclude",
            ConclusionOptions,
            {"reports": "many"},
            {"step": 4},
            preload=False,
        ),
    )
}
"""By name. A new kind is a module in `tasks/kinds/` and an entry here."""
