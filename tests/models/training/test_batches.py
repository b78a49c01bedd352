"""Batches: functions of the seed and the step, small enough to cross between processes."""

from dataclasses import fields, replace

import pytest
import torch
from scipy import stats
from scipy.special import logit

from models.generator.options import GeneratorConfig, NewModelConfig
from models.training.batches import batch_indices, make_batch, mirror
from models.training.loop import compute_losses
from models.training.state import new_state

CONFIG = GeneratorConfig(
    base_model=NewModelConfig(), resolution=64, num_steps=6, batch_size=4, mixed_precision="no"
)


def test_batches_are_functions_of_the_step(prepare):
    generator, training_set = prepare()
    first, again, other = (make_batch(generator, training_set, CONFIG, k) for k in (3, 3, 4))
    assert torch.equal(first.noise, again.noise)
    assert torch.equal(first.input_ids, again.input_ids)
    assert not torch.equal(first.noise, other.noise)


def test_a_loader_pins_whole_batches(prepare, monkeypatch):
    from torch.utils.data._utils.pin_memory import pin_memory

    generator, training_set = prepare()
    batch = make_batch(generator, training_set, CONFIG, 0)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor + 0)  # no GPU, no pinning
    (pinned,) = pin_memory([batch])
    for before, after in ((batch, pinned), (batch.layouts, pinned.layouts)):
        for item in fields(before):
            old, new = getattr(before, item.name), getattr(after, item.name)
            assert type(new) is type(old)
            assert new is not old
    assert torch.equal(pinned.latents, batch.latents)


@pytest.mark.parametrize("kind", ["uniform", "logit-normal"])
def test_noise_levels_follow_the_density_asked_for(prepare, kind):
    generator, training_set = prepare()
    options = {"timestep_sampling": kind, "timestep_logit_mean": 0.5, "batch_size": 50}
    config = CONFIG.model_copy(update=options)
    drawn = [make_batch(generator, training_set, config, step).timesteps for step in range(10)]
    levels = (torch.cat(drawn).double() + 0.5) / 1000
    expected = stats.uniform.cdf if kind == "uniform" else lambda x: stats.norm.cdf(logit(x) - 0.5)
    assert stats.kstest(levels.numpy(), expected).pvalue > 0.01


def test_every_epoch_sees_every_image_once():
    seen = [index for step in range(6) for index in batch_indices(8, 4, 0, step)]
    assert all(sorted(seen[start : start + 8]) == list(range(8)) for start in (0, 8, 16))


def test_mirroring_twice_is_nothing(layouts):
    assert (mirror(mirror(layouts[0])).boxes == layouts[0].boxes).all()


def test_the_canvas_does_not_cross_and_images_without_prompt_have_none(prepare):
    generator, training_set = prepare("canvas")
    with torch.no_grad():  # the canvas' weights begin at zero
        generator.model.unet.conv_in.weight.normal_()
    batch = make_batch(generator, training_set, CONFIG, 0)
    channels = {
        getattr(batch, item.name).shape[1:2] for item in fields(batch) if item.name != "layouts"
    }
    assert (generator.encoder.canvas_channels,) not in channels
    assert batch.masks.dtype == torch.uint8
    state = new_state(generator, CONFIG.model_copy(update={"perception_weight": 0.0}))

    def loss(dropped, boxes):
        layouts = replace(batch.layouts, boxes=boxes)
        changed = replace(batch, layouts=layouts, dropped=torch.tensor(dropped))
        alike = CONFIG.model_copy(update={"foreground_weight": 1.0, "foreground_power": 0.0})
        return compute_losses(state, alike, changed)[0].item()

    boxes, others = batch.layouts.boxes, batch.layouts.boxes.flip(0)
    assert loss([True] * 4, boxes) == loss([True] * 4, others)
    assert loss([False] * 4, boxes) != loss([False] * 4, others)
