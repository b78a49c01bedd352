import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from data.errors import InvalidConfig, InvalidModel
from flows.presets import PRESETS
from models.detector.config_files import CocoFolder, build_config
from models.detector.detector import Detector, detections_table
from models.detector.options import DetectorConfig
from models.detector.training import train_detector

pytestmark = pytest.mark.filterwarnings("ignore")  # MMDetection and MMEngine warn a lot


def settings(name="train_detector", **changes):
    options = PRESETS["demo"][name] | {
        "num_iterations": 4,
        "checkpoint_interval": 2,
        "batch_size": 2,
    }
    overrides = (
        options["overrides"] | {"model.test_cfg.score_thr": 0.0} | changes.pop("overrides", {})
    )
    return DetectorConfig.model_validate(options | {"overrides": overrides} | changes)


def train(dataset, tmp_path, config, on_step=lambda step, losses: None):
    train_set = CocoFolder(dataset.instances_file("train"), dataset.image_folder("train"))
    train_detector(
        config, [train_set], dataset.things, tmp_path / "work", tmp_path / "out", on_step
    )
    return Detector.load(tmp_path / "out")


@pytest.mark.parametrize("name", ["train_detector", "train_scorer"])
def test_a_detector_trains_is_exported_and_detects(dataset, tmp_path, name):
    steps = []
    detector = train(dataset, tmp_path, settings(name), lambda step, losses: steps.append(step))
    assert steps == [1, 2, 3, 4]
    found = list(detector.detect(dataset.image_paths("val"), batch_size=4))
    assert [item.image_id for item in found] == [1, 2, 3, 4, 5, 6]
    table = detections_table("val", found, "tiny")
    assert table.num_rows == sum(len(item.scores) for item in found) > 0
    assert set(table["category_id"].to_pylist()) <= set(dataset.things)
    assert 0 <= min(table["score"].to_pylist()) <= max(table["score"].to_pylist()) <= 1


def test_a_killed_training_goes_on_from_its_checkpoint(dataset, tmp_path):
    class Killed(Exception):
        """Stands for the end of the process."""

    def stop(step, losses):
        if step == 3:
            raise Killed

    with pytest.raises(Killed):
        train(dataset, tmp_path, settings(), stop)
    steps = []
    train(dataset, tmp_path, settings(), lambda step, losses: steps.append(step))
    assert steps == [3, 4]


@pytest.mark.parametrize(
    "changes",
    [{"config": "mmdet::no/such.py"}, {"overrides": {"model.backbone.type": "NoSuchNet"}}],
)
def test_a_config_that_does_not_exist_is_refused(dataset, tmp_path, changes):
    with pytest.raises(InvalidConfig, match="detector config"):
        train(dataset, tmp_path, settings(**changes))


def test_nested_overrides_do_not_undo_dotted_ones(dataset, tmp_path):
    overrides = {"model": {"test_cfg": {"max_per_img": 7}}}
    config = build_config(settings(overrides=overrides), [], dataset.things, tmp_path)
    assert config.model.test_cfg.max_per_img == 7
    assert config.model.backbone.widen_factor == 0.25


def test_the_learning_rate_reaches_an_optimizer_that_was_replaced(dataset, tmp_path):
    config = build_config(settings("train_scorer"), [], dataset.things, tmp_path)
    assert config.optim_wrapper.optimizer.type == "AdamW"
    assert config.optim_wrapper.optimizer.lr == PRESETS["demo"]["train_scorer"]["learning_rate"]


def test_a_folder_that_is_no_detector_is_refused(tmp_path):
    with pytest.raises(InvalidModel, match="detector folder"):
        Detector.load(tmp_path)


def test_the_number_of_loading_processes_changes_nothing(dataset, tmp_path):
    found = []
    for count in (0, 2):
        config = settings(num_workers=count, num_iterations=6)
        found.append(train(dataset, tmp_path / str(count), config))
    first, second = (load_file(tmp_path / n / "out" / "model.safetensors") for n in ("0", "2"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_images_are_flipped_by_seed_and_place():
    from mmengine.dataset import BaseDataset

    from models.detector.seeded_data import SeededConcatDataset

    class Coins(BaseDataset):
        """A data set whose items are random numbers."""

        def load_data_list(self):
            return [{} for _ in range(5)]

        def __getitem__(self, index):
            return index, np.random.randint(2**30)  # noqa: NPY002  # what transforms use

    def draw(seed, place):
        return SeededConcatDataset([Coins()], seed)[5 * place + 3]

    before = np.random.get_state()[1].copy()  # noqa: NPY002  # what transforms use
    assert draw(0, 7) == draw(0, 7)
    assert draw(0, 7)[0] == 3
    assert len({draw(seed, place)[1] for seed in (0, 1) for place in (0, 1, 2)}) == 6
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002  # likewise


def test_backbone_features_do_not_depend_on_the_batch(dataset, tmp_path):
    detector = train(dataset, tmp_path, settings())
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 3, 64, 64), np.uint8))
    together = detector.backbone_features(images)
    torch.testing.assert_close(detector.backbone_features(images[1:2]), together[1:2])
