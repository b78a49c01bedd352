import itertools
import json

import pytest
import torch

from data.errors import InvalidModel, TrainingDiverged
from models.config import GeneratorConfig, NewModelConfig
from models.training import read_metrics, train_generator, train_step
from models.training_batches import batch_indices, make_batch, mirror
from models.training_set import build_training_set
from models.training_state import new_state

SMALL = GeneratorConfig(
    base_model=NewModelConfig(),
    resolution=64,
    layout_conditioning="both",
    num_steps=6,
    batch_size=4,
    learning_rate=1e-3,
    text_learning_rate=1e-3,
    num_warmup_steps=2,
    checkpoint_interval=2,
    mixed_precision="no",
)


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.fixture
def prepare(new_generator, layouts, dataset, tmp_path):
    paths = dict(dataset.image_paths("train"))
    count = itertools.count()

    def create(conditioning="both", latents="cached", **options):
        generator = new_generator(conditioning, **options)
        folder = tmp_path / f"training_set{next(count)}"
        return generator, build_training_set(generator.model, layouts, paths, folder, latents)

    return create


def weights(generator):
    model = generator.model
    return {**model.unet.state_dict(), **model.text_encoder.state_dict()}


def train(prepare, work, kill_at=None, config=SMALL):
    work.mkdir(exist_ok=True)
    generator, training_set = prepare()

    def on_step(metrics):
        if metrics["step"] == kill_at:
            raise Killed

    train_generator(generator, training_set, config, work, "run", on_step=on_step)
    return weights(generator)


@pytest.mark.parametrize("kill_at", [1, 2, 5])
def test_a_killed_run_ends_bit_identical(prepare, tmp_path, kill_at):
    whole = train(prepare, tmp_path / "whole")
    with pytest.raises(Killed):
        train(prepare, tmp_path / "killed", kill_at)
    resumed = train(prepare, tmp_path / "killed")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    steps = [row["step"] for row in read_metrics(tmp_path / "killed" / "metrics.jsonl")]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_a_checkpoint_cut_off_while_written_does_no_harm(prepare, tmp_path):
    whole = train(prepare, tmp_path / "whole")
    with pytest.raises(Killed):
        train(prepare, tmp_path / "killed", 3)
    (tmp_path / "killed" / "checkpoint.tmp").write_bytes(b"half")
    resumed = train(prepare, tmp_path / "killed")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_checkpoint_of_another_run_is_refused(prepare, tmp_path):
    train(prepare, tmp_path / "run")
    generator, training_set = prepare()
    with pytest.raises(InvalidModel, match="another configuration"):
        train_generator(generator, training_set, SMALL, tmp_path / "run", "other")


def test_training_lowers_the_loss_on_a_fixed_batch(prepare):
    generator, training_set = prepare()
    config = SMALL.model_copy(update={"num_steps": 60, "num_warmup_steps": 5})
    state = new_state(generator, config)
    batch = make_batch(generator, training_set, config, 0)
    losses = [train_step(state, config, [batch])["loss"] for _ in range(40)]
    assert losses[-1] < 0.7 * losses[0]


def test_divergence_names_the_step_and_leaves_the_weights(prepare):
    generator, training_set = prepare()
    state = new_state(generator, SMALL)
    before = {name: value.clone() for name, value in weights(generator).items()}
    batch = make_batch(generator, training_set, SMALL, 0)
    batch.latents.fill_(torch.nan)
    with pytest.raises(TrainingDiverged, match="step 0: the loss is nan"):
        train_step(state, SMALL, [batch])
    assert all(torch.equal(before[name], value) for name, value in weights(generator).items())


def test_without_perception_loss_the_head_is_not_trained(prepare):
    generator, training_set = prepare()
    config = SMALL.model_copy(update={"perception_weight": 0.0})
    state = new_state(generator, config)
    metrics = train_step(state, config, [make_batch(generator, training_set, config, 0)])
    assert "loss_perception" not in metrics
    assert state.modules.head is None


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("conditioning", ["tokens", "canvas", "both"])
def test_every_kind_of_conditioning_and_prediction_trains(prepare, prediction_type, conditioning):
    generator, training_set = prepare(conditioning, prediction_type=prediction_type)
    state = new_state(generator, SMALL)
    metrics = train_step(state, SMALL, [make_batch(generator, training_set, SMALL, 0)])
    assert 0 < metrics["loss"] < 10


def test_a_frozen_text_encoder_stays_as_it_is(prepare):
    generator, training_set = prepare()
    config = SMALL.model_copy(update={"text_learning_rate": 0.0, "num_warmup_steps": 0})
    before = {k: v.clone() for k, v in generator.model.text_encoder.state_dict().items()}
    state = new_state(generator, config)
    train_step(state, config, [make_batch(generator, training_set, config, 0)])
    after = generator.model.text_encoder.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_batches_are_functions_of_the_step(prepare):
    generator, training_set = prepare()
    first, again, other = (make_batch(generator, training_set, SMALL, k) for k in (3, 3, 4))
    assert torch.equal(first.noise, again.noise)
    assert torch.equal(first.input_ids, again.input_ids)
    assert not torch.equal(first.noise, other.noise)


def test_every_epoch_sees_every_image_once():
    seen = [index for step in range(6) for index in batch_indices(8, 4, 0, step)]
    assert all(sorted(seen[start : start + 8]) == list(range(8)) for start in (0, 8, 16))


def test_mirroring_twice_is_nothing(layouts):
    assert (mirror(mirror(layouts[0])).boxes == layouts[0].boxes).all()


def test_metrics_survive_a_cut_off_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"step": 1.0}) + '\n{"step"')
    assert read_metrics(path) == [{"step": 1.0}]
