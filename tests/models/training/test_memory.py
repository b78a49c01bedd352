"""What a training takes is counted, and a way of working is chosen by it."""

from functools import cache
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import CLIPTextConfig

from data.errors import OutOfMemory
from models.counting import LiveBytes
from models.generator.options import GeneratorConfig
from models.training import memory
from models.training.memory import (
    RESERVE,
    MemoryCount,
    count_sampling,
    count_training,
    fit,
    fitted,
    fixed_bytes,
    least_memory,
    training_counter,
)

UNET = {
    "sample_size": 8,
    "in_channels": 4,
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 32,
    "attention_head_dim": 8,
    "norm_num_groups": 8,
}
VAE = {"block_out_channels": (32, 32), "down_block_types": ("DownEncoderBlock2D",) * 2,
       "up_block_types": ("UpDecoderBlock2D",) * 2, "latent_channels": 4}  # fmt: skip
COUNT = MemoryCount({"weights": 4}, {False: 6, True: 6}, {False: 100, True: 20})


@pytest.fixture(scope="module")
def text():
    return CLIPTextConfig(
        vocab_size=200,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )


@pytest.fixture(scope="module")
def counted(text):
    """Counts what a training takes, which goes through the modules four times."""

    @cache
    def count(precision="no", **options):
        return count_training(UNET, text, VAE, GeneratorConfig(**options), precision)

    return count


def fixed_of(text, **options):
    return fixed_bytes(UNET, text, VAE, GeneratorConfig(**options))


def test_weights_gradients_and_moments_are_those_of_adam(text):
    fixed = fixed_of(text, embedding_rows="all", ema_decay=None)
    assert fixed["gradients"] == fixed["weights"]
    assert fixed["moments"] == 2 * fixed["weights"]
    assert fixed["average"] == 0


def test_rows_that_are_touched_have_no_dense_gradient(text):
    dense, touched = (fixed_of(text, embedding_rows=rows) for rows in ("all", "touched"))
    assert dense["gradients"] - touched["gradients"] == 4 * 200 * 32
    assert dense["moments"] == touched["moments"]


def test_adapters_and_eight_bits_need_less(text):
    plain = fixed_of(text)
    assert fixed_of(text, lora_rank=2)["gradients"] < plain["gradients"]
    assert fixed_of(text, optimizer="adamw-8bit")["moments"] < plain["moments"]


def test_activations_are_less_in_half_precision_and_computed_twice(text, counted):
    full, half = (counted(precision) for precision in ("no", "bf16"))
    assert full.fixed == half.fixed == fixed_of(text)
    assert half.per_image[False] < full.per_image[False]
    assert full.per_image[True] < full.per_image[False]
    assert half.copies[False] > full.copies[False]


def test_encoding_online_needs_the_autoencoder(text):
    cached, online = (fixed_of(text, latents=kind) for kind in ("cached", "online"))
    assert set(online) - set(cached) == {"autoencoder"}


def test_what_is_kept_for_the_backward_pass_is_counted(text):
    """Against the bytes that autograd says it saves, on real tensors."""
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(4, 8, 3, padding=1), torch.nn.SiLU(), torch.nn.Conv2d(8, 4, 3, padding=1)
    )
    own, saved = {p.untyped_storage()._cdata for p in layers.parameters()}, {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = storage.nbytes()
        return tensor

    images = torch.zeros(2, 4, 16, 16)
    own.add(images.untyped_storage()._cdata)
    with (
        LiveBytes() as live,
        torch.autograd.graph.saved_tensors_hooks(keep, lambda item: item),
    ):
        out = layers(images)
    assert live.peak == sum(saved.values()) + out.untyped_storage().nbytes()


def test_drawing_takes_no_moments_and_no_gradients(text, counted):
    count = count_sampling(UNET, text, VAE, "no")
    assert set(count.fixed) == {"weights"}
    assert 0 < count.per_image[False] < counted("no").per_image[False]


@pytest.mark.parametrize("options", [{}, {"lora_rank": 2}])
def test_between_the_sizes_counted_the_count_is_close_and_not_too_low(text, counted, options):
    count, config = counted("bf16", **options), GeneratorConfig(**options)
    modules = memory.empty_modules(UNET, text, config)
    with FakeTensorMode(allow_non_fake_inputs=True):
        modules.to_empty(device="cpu")
        for checkpointing in (False, True):
            if checkpointing:
                modules.enable_checkpointing()
            alive = memory._activations(modules, "bf16", 4)
            expected = count.copies[checkpointing] + 4 * count.per_image[checkpointing]
            assert 0.8 * expected < alive <= expected


@pytest.mark.parametrize(
    ("room", "options", "expected"),
    [
        (6400, {}, (64, False)),
        (6399, {}, (32, False)),
        (400, {}, (4, False)),
        (399, {}, (16, True)),
        (20, {}, (1, True)),
        (399, {"gradient_checkpointing": False}, (2, False)),
        (6400, {"gradient_checkpointing": True}, (64, True)),
        (400, {"gradient_accumulation_steps": 4}, (16, True)),
        (1600, {"num_processes": 4}, (16, False)),
        (100, {"batch_size": 1}, (1, False)),
    ],
)
def test_the_largest_part_that_fits_is_taken(room, options, expected):
    config = GeneratorConfig(**options)
    found = fit(COUNT, config, room + 10 + RESERVE)
    assert (found.num_images, found.checkpointing) == expected
    assert found.total <= room + 10 + RESERVE
    chosen = config.model_copy(update=found.options(config))
    assert chosen.num_parts * found.num_images * config.num_processes == config.batch_size


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 1}])
def test_what_fits_has_the_least_memory(options):
    config = GeneratorConfig(**options)
    least = least_memory(COUNT, config)
    assert fit(COUNT, config, least).total == least
    assert fit(COUNT, config, least - 1) is None


def test_trainings_that_differ_in_what_takes_memory_are_counted_as_by_themselves(text, counted):
    config = GeneratorConfig()
    count = training_counter(UNET, text, VAE, config, "no")
    for options in ({}, {"lora_rank": 2}, {"optimizer": "adamw-8bit"}, {"ema_decay": None}):
        assert count(config.model_copy(update=options)) == counted(**options)


def test_a_cpu_cuts_nothing_and_a_gpu_by_its_memory(new_generator, monkeypatch):
    generator, config = new_generator("tokens"), GeneratorConfig(batch_size=4, mixed_precision="no")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert fitted(generator, config) == (config, None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    of_device = SimpleNamespace(total_memory=16 * 10**9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: of_device)
    chosen, found = fitted(generator, config)
    assert (chosen.gradient_accumulation_steps, chosen.gradient_checkpointing) == (1, False)
    assert found.num_images == 4
    given = config.model_copy(
        update={"gradient_accumulation_steps": 2, "gradient_checkpointing": True}
    )
    assert fitted(generator, given) == (given, None)
    of_device.total_memory = 10**9
    with pytest.raises(
        OutOfMemory, match=r"has 1\.0 GB\. No option makes it fit: the least is 1\.5 GB"
    ):
        fitted(generator, config)
