"""Training iterations of the demo's detector against the one that it had before, and what both reach.

The one before has three levels in place of two, mmcv's activations, two kernels each, and an optimiser that
is called for every parameter by itself, by MMDetection's config. Both see the same images as often.
"""

import argparse
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from timing import verdict

from data.coco.image_sets import real_images
from data.ingest.ingestion import ingest
from data.ingest.options import IngestConfig, ScenesConfig
from data.vocabulary.tables import Dataset
from flows.presets import PRESETS, merge
from models.detector.config_files import CocoFolder
from models.detector.detector import Detector, detections_table
from models.detector.options import DetectorConfig
from models.detector.training import train_detector
from models.metrics.coco_metrics import coco_statistics, read_truth

GOAL = 2.0
WARM_UP = 50
"""Iterations that are not timed."""

NOW: dict[str, Any] = PRESETS["demo"]["train_detector"]
_SWISH = {"type": "Swish"}
BEFORE = merge(
    NOW,
    {
        "overrides": {
            "model.backbone.arch_ovewrite": [
                [64, 128, 3, True, False],
                [128, 256, 3, True, False],
                [256, 512, 3, False, True],
            ],
            "model.backbone.out_indices": [1, 2, 3],
            "model.backbone.act_cfg": _SWISH,
            "model.neck.in_channels": [32, 64, 128],
            "model.neck.out_channels": 64,
            "model.neck.act_cfg": _SWISH,
            "model.bbox_head.in_channels": 64,
            "model.bbox_head.feat_channels": 64,
            "model.bbox_head.act_cfg": _SWISH,
            "model.bbox_head.strides": [4, 8, 16],
            "optim_wrapper.optimizer": {"fused": False},
            "optim_wrapper.paramwise_cfg": {"norm_decay_mult": 0.0, "bias_decay_mult": 0.0},
        }
    },
)


def trained(options: dict[str, Any], iterations: int, dataset: Dataset, folder: Path) -> float:
    """Train a detector into a folder; seconds an iteration, the median."""
    ends: list[float] = []
    settings = DetectorConfig.model_validate(options | {"num_iterations": iterations})
    images = CocoFolder(dataset.instances_file("train"), dataset.image_folder("train"))
    folder.mkdir()
    train_detector(
        settings,
        [images],
        dataset.things,
        folder,
        folder / "detector",
        lambda step, losses: ends.append(time.perf_counter()),
    )
    return statistics.median(after - before for before, after in pairwise(ends[WARM_UP:]))


def mean_average_precision(folder: Path, dataset: Dataset) -> float:
    """Of the detector in a folder, on the validation images."""
    found = Detector.load(folder / "detector").detect(real_images(dataset, "val").images, 64)
    table = detections_table("val", found, folder.name)
    return float(coco_statistics(read_truth(dataset.instances_file("val")), table)[0])


def main() -> int:
    """Train both in turn; 1 if the present one is not fast enough."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iterations", type=int, default=1200)
    parser.add_argument("--images", type=int, default=3500)
    parser.add_argument("--rounds", type=int, default=2, help="each with a seed of its own")
    given = parser.parse_args()
    seconds: dict[str, list[float]] = {"now": [], "before": []}
    reached: dict[str, list[float]] = {"now": [], "before": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scenes = ScenesConfig(num_train=given.images, num_val=500)
        ingest(IngestConfig(scenes=scenes), folder / "data")
        dataset = Dataset(folder / "data")
        for seed in range(given.rounds):
            for which, options in {"now": NOW, "before": BEFORE}.items():
                place = folder / f"{which} {seed}"
                seconds[which].append(
                    trained(options | {"seed": seed}, given.iterations, dataset, place)
                )
                reached[which].append(mean_average_precision(place, dataset))
                print(
                    f"{which:>8}, seed {seed}: {1000 * seconds[which][-1]:.0f} ms an iteration, "
                    f"mAP {reached[which][-1]:.3f}",
                    flush=True,
                )
    ratio = min(seconds["before"]) / min(seconds["now"])
    gain = statistics.mean(reached["now"]) - statistics.mean(reached["before"])
    return verdict("detector_step", {"before": (ratio, GOAL)}, f"mAP {gain:+.3f}")


if __name__ == "__main__":
    sys.exit(main())
