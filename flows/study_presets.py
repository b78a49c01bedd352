"""Studies by name, written as in a TOML file."""

from typing import Any, Literal

from flows.presets import PRESETS

StudyName = Literal["demo-seeds", "claims", "pays", "pays-bccd", "few-labels"]

_OBEYED = "Objects asked for as easy are found more often than as measured, hard ones less often"
_HARD_HELPS = "Detectors trained on real and hard images beat those on real images alone"
"""What several studies ask."""

_DEMO_SEEDS: dict[str, Any] = {
    "preset": "demo",
    "seeds": (0, 1, 2),
    "runs": {"demo": {}},
    "questions": (
        {
            "name": "attributes",
            "text": _OBEYED,
            "order": ("demo: recall_easy", "demo: recall_origin", "demo: recall_hard"),
        },
        {
            "name": "gain",
            "text": _HARD_HELPS,
            "order": ("demo: map_real_hard", "demo: map_real"),
        },
    ),
}

_CLAIMS: dict[str, Any] = {
    "preset": "demo",
    "seeds": (0, 1, 2),
    "options": {
        "train_generator": {"probe": {"interval": 0}},
        "synthesize": {"num_val_layouts": 160},
        "retrain": {"arms": ("real",)},
    },
    "runs": {
        "full": {
            "retrain": {
                "arms": ("real", "real+hard"),
                "others": {"rtmdet": PRESETS["demo"]["train_scorer"]},
            }
        },
        "without-loss": {"train_generator": {"perception_weight": 0.0}},
        "without-attributes": {"train_generator": {"perception_attributes": False}},
    },
    "questions": (
        {
            "name": "claim_1",
            "text": "The perception loss makes generated images more faithful to their layouts",
            "order": ("full: score_ap50_origin", "without-loss: score_ap50_origin"),
        },
        {
            "name": "claim_2",
            "text": "So do the perception-aware attributes in the prompt",
            "order": ("full: score_ap50_origin", "without-attributes: score_ap50_origin"),
        },
        {
            "name": "claim_3",
            "text": _OBEYED,
            "order": ("full: recall_easy", "full: recall_origin", "full: recall_hard"),
        },
        {
            "name": "claim_4",
            "text": _HARD_HELPS,
            "order": ("full: map_real_hard", "full: map_real"),
        },
        {
            "name": "claim_5",
            "text": "Attributes by one detector help another detector too",
            "order": ("full: rtmdet_map_real_hard", "full: rtmdet_map_real"),
        },
    ),
}


_FOLDS = {"scoring": {"num_folds": 3}}
"""A detector finds hardly any of the few things hard that it has learnt from."""

_SAMPLING = {"guidance_scale": 2.5}
"""Of the images whose worth was measured; the demo's are further apart in their attributes."""

_PASTED = {"augmentation": "copy-paste"}
"""What costs nothing, and is therefore done to the real images of every arm that is to beat it."""


def _paying(
    scenes: dict[str, int],
    *,
    scoring_length: int,
    pretraining_length: int,
    length: int,
    added_share: float,
) -> dict[str, Any]:
    """What few labelled Scenes gain from images without labels, through a generator and without one.

    Args:
        scenes: how many of them.
        scoring_length: iterations of the detector that gives the attributes, and of the scorer.
        pretraining_length: steps of the generator's pre-training.
        length: iterations of the detectors that are compared.
        added_share: of their batches.
    """
    return {
        "preset": "demo",
        "options": {
            "ingest": {"scenes": scenes},
            "train_detector": {"num_iterations": scoring_length},
            "train_scorer": {"num_iterations": scoring_length},
            "extract_attributes": _FOLDS,
            "pretrain_generator": {"num_steps": pretraining_length},
            "synthesize": {
                "num_train_layouts": 1200,
                "train_layout_source": "recombined",
                "sampling": _SAMPLING,
            },
            "retrain": {
                "detector": {"num_iterations": length},
                "seeds": (0, 1, 2, 3, 4),
                "added_share": added_share,
            },
        },
        "runs": {
            "generator": {
                "retrain": {
                    "arms": (
                        "real",
                        "real+copy-paste",
                        "self-training",
                        "real+origin",
                        "real+hard",
                    ),
                    "ruler": (2,),
                }
            },
            "pasted": {
                "retrain": {
                    "detector": _PASTED,
                    "arms": ("real", "self-training", "real+origin", "real+hard"),
                    "ruler": (1.5, 2),
                }
            },
            "verified": {
                "retrain": {"detector": _PASTED, "arms": ("real", "real+hard"), "verification": {}}
            },
            "perfect": {
                "synthesize": {"drawn_by": "scenes"},
                "retrain": {
                    "detector": _PASTED,
                    "arms": ("real", "real+easy", "real+origin", "real+hard"),
                },
            },
            "noisy": {"retrain": {"arms": ("real",), "box_noise": 0.05}},
        },
        "numbers": {
            "gain_copy_paste": "generator: gain_real_copy_paste",
            "gain_self_training": "generator: gain_self_training",
            "gain_without_copy_paste": "generator: gain_real_hard",
            "gain_self_training_beside_copy_paste": "pasted: gain_self_training",
            "gain_perfect_generator": "perfect: gain_real_hard",
            "score_ap75_real": "generator: score_ap75_real",
            "score_ap75_origin": "generator: score_ap75_origin",
            "map_real": "generator: map_real",
            "map_noisy_labels": "noisy: map_real",
        },
        "best_of": ("pasted: real_origin", "pasted: real_hard", "verified: real_hard"),
    }


_PAYS = _paying(
    {"num_train": 600, "num_spare": 600, "num_unlabelled": 10_000},
    scoring_length=3000,
    pretraining_length=8000,
    length=6000,
    added_share=0.25,
)

_FEW_LABELS = _paying(
    {"num_train": 150, "num_spare": 900, "num_unlabelled": 5000},
    scoring_length=2000,
    pretraining_length=4000,
    length=2000,
    added_share=0.5,
)

_PAYS_BCCD: dict[str, Any] = {
    "preset": "demo",
    "options": {
        "ingest": {"tile": {"size": 320, "overlap": 0.5}},
        "extract_attributes": _FOLDS,
        "train_generator": {"num_steps": 2400},
        "synthesize": {"num_train_layouts": 1000, "sampling": _SAMPLING},
        "retrain": {
            "detector": {"num_iterations": 3000},
            "seeds": (0, 1, 2),
            "added_share": 0.25,
        },
    },
    "runs": {
        "tiles": {"retrain": {"arms": ("real", "real+copy-paste", "real+origin", "real+hard")}}
    },
    "numbers": {
        "gain_copy_paste": "tiles: gain_real_copy_paste",
        "score_ap75_real": "tiles: score_ap75_real",
        "score_ap75_origin": "tiles: score_ap75_origin",
    },
    "best_of": ("tiles: real_origin", "tiles: real_hard"),
}

STUDIES: dict[str, dict[str, Any]] = {
    "demo-seeds": _DEMO_SEEDS,
    "claims": _CLAIMS,
    "pays": _PAYS,
    "pays-bccd": _PAYS_BCCD,
    "few-labels": _FEW_LABELS,
}
"""Name to study; `pays-bccd` needs your `ingest.train` and `ingest.val`."""
