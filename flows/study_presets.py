"""Studies by name, written as in a TOML file."""

from typing import Any, Literal

from data.layouts.layout import POLICIES
from flows.presets import PRESETS

StudyName = Literal["claims", "pays", "pays-bccd", "few-labels"]

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
            "text": "Objects asked for as easy are found more often than as measured, hard ones less often",
            "order": ("full: recall_easy", "full: recall_origin", "full: recall_hard"),
        },
        {
            "name": "claim_4",
            "text": "Detectors trained on real and hard images beat those on real images alone",
            "order": ("full: map_real_hard", "full: map_real"),
        },
        {
            "name": "claim_5",
            "text": "Attributes by one detector help another detector too",
            "order": ("full: rtmdet_map_real_hard", "full: rtmdet_map_real"),
        },
    ),
}


_POLICIES = tuple(f"real+{policy}" for policy in POLICIES)

_BEST = tuple(f"real_{policy}" for policy in POLICIES)
"""The same arms, as their numbers name them."""

_LONG = {"num_iterations": 6000}

_NUMBERS = {
    "gain_copy_paste": "generator: gain_real_copy_paste",
    "gain_self_training": "generator: gain_self_training",
    "score_ap75_real": "generator: score_ap75_real",
    "score_ap75_origin": "generator: score_ap75_origin",
}
"""Of studies with the run `generator`."""

_FOLDS = {"scoring": {"num_folds": 3}}
"""A detector finds hardly any of the few things hard that it has learnt from."""

_PAYS: dict[str, Any] = {
    "preset": "demo",
    "options": {
        "ingest": {"scenes": {"num_train": 600, "num_spare": 1800, "num_unlabelled": 10_000}},
        "train_detector": _LONG,
        "train_scorer": _LONG,
        "extract_attributes": _FOLDS,
        "pretrain_generator": {"num_steps": 6000},
        "synthesize": {"num_train_layouts": 1200, "train_layout_source": "recombined"},
        "retrain": {
            "detector": _LONG,
            "seeds": (0, 1, 2, 3, 4),
            "added_share": 0.5,
            "ruler": (0.25, 0.5, 2, 4),
        },
    },
    "runs": {
        "generator": {
            "retrain": {
                "arms": ("real", "real+copy-paste", "self-training", *_POLICIES),
            }
        },
        "verified": {"retrain": {"arms": ("real", *_POLICIES), "verification": {}}},
        "perfect": {
            "synthesize": {"drawn_by": "scenes"},
            "retrain": {"arms": ("real", "real+origin"), "ruler": ()},
        },
        "noisy": {"retrain": {"arms": ("real",), "box_noise": 0.05, "ruler": ()}},
        "short": {
            "retrain": {
                "arms": ("real", "real+origin"),
                "ruler": (),
                "detector": {"num_iterations": 3000},
            }
        },
    },
    "numbers": {
        **_NUMBERS,
        "gain_perfect_generator": "perfect: gain_real_origin",
        "gain_at_half_length": "short: gain_real_origin",
        "map_real": "generator: map_real",
        "map_noisy_labels": "noisy: map_real",
    },
    "best_of": tuple(f"{run}: {arm}" for run in ("generator", "verified") for arm in _BEST),
}

_PAYS_BCCD: dict[str, Any] = {
    "preset": "demo",
    "options": {
        "ingest": {"tile": {"size": 320, "overlap": 0.5}},
        "train_generator": {"num_steps": 2400},
        "retrain": {"seeds": (0, 1, 2)},
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

_MEDIUM = {"num_iterations": 2000}

_FEW_LABELS: dict[str, Any] = {
    "preset": "demo",
    "options": {
        "ingest": {"scenes": {"num_train": 150, "num_spare": 900, "num_unlabelled": 5000}},
        "train_detector": _MEDIUM,
        "train_scorer": _MEDIUM,
        "extract_attributes": _FOLDS,
        "pretrain_generator": {"num_steps": 4000},
        "synthesize": {"num_train_layouts": 1200, "train_layout_source": "recombined"},
        "retrain": {"detector": _MEDIUM, "seeds": (0, 1, 2, 3, 4), "added_share": 0.5},
    },
    "runs": {
        "generator": {
            "retrain": {
                "arms": ("real", "real+copy-paste", "self-training", "real+origin", "real+hard"),
                "ruler": (2, 4),
            }
        },
        "pasted": {
            "retrain": {
                "detector": {"augmentation": "copy-paste"},
                "arms": ("real", "self-training", "real+origin", "real+hard"),
            }
        },
        "perfect": {
            "synthesize": {"drawn_by": "scenes"},
            "retrain": {
                "detector": {"augmentation": "copy-paste"},
                "arms": ("real", "real+origin", "real+hard"),
            },
        },
    },
    "numbers": {
        **_NUMBERS,
        "gain_beside_copy_paste": "pasted: gain_real_hard",
        "gain_self_training_beside_copy_paste": "pasted: gain_self_training",
        "gain_perfect_generator": "perfect: gain_real_hard",
    },
    "best_of": ("generator: real_origin", "generator: real_hard"),
}

STUDIES: dict[str, dict[str, Any]] = {
    "claims": _CLAIMS,
    "pays": _PAYS,
    "pays-bccd": _PAYS_BCCD,
    "few-labels": _FEW_LABELS,
}
"""Name to study; `pays-bccd` needs your `ingest.train` and `ingest.val`."""
