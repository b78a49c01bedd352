"""Rows of a run's tables, made by the code of the steps that write them; executors of shards."""

import socket
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from data.artifacts.options import Execution
from models.metrics.arms import ArmResult, arm_worth, compare
from models.metrics.interval import Interval


def arm_results(arm, scores, detector, classes):
    real = {"real x 0.25": 150, "real x 0.5": 300}.get(arm, 600)
    synthetic = 512 if arm.startswith("real+") and arm != "real+copy-paste" else 0
    return [
        ArmResult(
            detector=detector, arm=arm, seed=seed, num_real=real, num_synthetic=synthetic,
            num_pseudo_labelled=0, iterations=1500, passes=20.0, added_passes=20.0 if synthetic else None,
            augmentation="copy-paste" if arm == "real+copy-paste" else "flip",
            metrics={
                "map": score, "map50": score + 0.2, "map75": score - 0.1, "map_small": score - 0.2,
                "map_medium": score + 0.1, "map_large": None, "mar100": score + 0.05,
                **{f"class: {name}": score for name in classes},
            },
        )
        for seed, score in enumerate(scores)
    ]  # fmt: skip


def comparison(scores, detector="main", classes=("cube",)):
    """What `compare` writes of arms, each with its scores by seed; all are held against `real`."""
    from tasks.kinds.compare import _arm_row, _contrast_table, _row, answer

    results = [
        item for arm, own in scores.items() for item in arm_results(arm, own, detector, classes)
    ]
    asked = [(arm, "real") for arm in scores if arm.startswith("real+")]

    def bootstrap(of, versus):
        gain = of.map - versus.map
        return Interval(gain, gain - 0.03, gain + 0.03), 0.01

    found = compare(results, asked, bootstrap)
    return SimpleNamespace(
        arms=[_arm_row(results, arm, found, arm_worth(results, arm)) for arm in scores],
        detectors=[_row(item) for item in results],
        contrasts=_contrast_table(found).to_pylist() if found else [],
        answers=[answer(item) for item in found if item.verdict],
    )


def fidelity(num_images=40, num_features=8, extractor="InceptionV3"):
    """What `measure` writes of random features: floor, then origin, easy and hard."""
    from tasks.kinds.measure import _Real

    rng = np.random.default_rng(0)
    facts = {
        "extractor": extractor,
        "num_features": num_features,
        "resolution": 64,
        "resize": "bicubic",
        "way": "generated at 64 px",
    }
    real, others = (
        rng.normal(size=(count, num_features)) for count in (num_images, 3 * num_images)
    )
    generated = {name: rng.normal(0.5, 1, real.shape) for name in ("origin", "easy", "hard")}
    side = _Real(real, facts)
    ids = np.arange(num_images)
    rows = [
        side.row(name, features, ids) | {"copies": 0.025} for name, features in generated.items()
    ]
    return [*side.floor_rows(others, np.arange(len(others)), num_images), *rows]


def scores(scorer, recalls, reach=0.02):
    """What `measure` writes of a scorer, from its recalls by images."""
    order = [name for name in ("easy", "origin", "hard") if name in recalls]
    steps = {a: recalls[a] - recalls[b] for a, b in pairwise(order)}
    return [
        {
            "scorer": scorer, "gave the attributes": scorer == "detector", "protocol": protocol,
            "images": images, "num_images": 224, "num_objects": 900,
            "score_threshold": 0.001, "recall": recall, "map": recall - 0.3,
            "map50": recall - 0.05, "map75": recall - 0.35, "map_small": None, "map_medium": None,
            "map_large": None, "mar100": None, "recall_step": steps.get(images),
            "recall_step_low": steps[images] - reach if images in steps else None,
            "recall_step_high": steps[images] + reach if images in steps else None,
        }
        for protocol in ("layout", "lama")
        for images, recall in recalls.items()
    ]  # fmt: skip


@pytest.fixture(scope="session")
def rows():
    """Makes rows of the tables."""
    return SimpleNamespace(comparison=comparison, fidelity=fidelity, scores=scores)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """Address of a Ray cluster of four cores, and four GPUs that it is told of."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ray._private.ray_constants.ENABLE_RAY_CLUSTER", False)  # loopback alone
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        started = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 4, "num_gpus": 4, "object_store_memory": 100_000_000},
        )
        yield started.address
        started.shutdown()


@pytest.fixture
def free_endpoint():
    """HOST:PORT of this machine that nothing listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def forked_ranks(fork_server, monkeypatch):
    """Has torchrun fork trainings from the fork server: spawned, each process would import PyTorch."""
    from torch.distributed.launcher.api import LaunchConfig

    def config(**options):
        return LaunchConfig(**options | {"start_method": "forkserver"})

    monkeypatch.setattr("models.processes.LaunchConfig", config)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # it is set for the processes
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")  # likewise


@pytest.fixture
def execution(request):
    """Makes options of an executor."""

    def make(executor, num_workers):
        if executor == "local":
            return Execution(num_workers=num_workers)
        address = request.getfixturevalue("cluster")
        return Execution(executor="ray", num_workers=num_workers, address=address)

    return make
