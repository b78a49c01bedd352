"""The ordinary path at Stable Diffusion v1.5's size, on random weights: `pytest -m slow`.

Needs about 20 GB of memory and 30 GB of disk for a few minutes.
"""

import gc
import json
import logging

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from tokenizers import pre_tokenizers
from transformers import CLIPTextConfig, CLIPTextModel

from data.layouts.layout import read_layouts
from data.layouts.prompts import LocationGrid
from flows.run_config import build_run
from models.devices import peak_memory_bytes
from models.generator.drawing_options import SamplingConfig
from models.generator.modules import (
    load_base_model,
    load_generator,
    prepare_generator,
    save_generator,
)
from models.generator.options import GeneratorConfig, ProbeConfig
from models.generator.sampling import sample_batch
from models.training.loop import train_generator
from models.training.memory import count_training, fit
from models.training.memory_table import (
    STABLE_DIFFUSION_TEXT,
    STABLE_DIFFUSION_UNET,
    STABLE_DIFFUSION_VAE,
    base_shapes,
    memory_table,
)
from models.training.metrics_file import read_metrics
from models.training.training_set import build_training_set

logger = logging.getLogger(__name__)

_VOCABULARY_SIZE = STABLE_DIFFUSION_TEXT["vocab_size"]


def write_tokenizer(folder):
    """CLIP's files with CLIP's sizes: bytes, bytes that end a word, merges, two special tokens."""
    folder.mkdir()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    symbols = [*alphabet, *(f"{item}</w>" for item in alphabet)]
    num_merges = _VOCABULARY_SIZE - len(symbols) - 2
    pairs = [(a, b) for a in alphabet for b in symbols if a.isalnum()][:num_merges]
    tokens = [*symbols, *(a + b for a, b in pairs), "<|startoftext|>", "<|endoftext|>"]
    assert len(set(tokens)) == _VOCABULARY_SIZE
    vocabulary = {token: index for index, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    merges = ["#version: 0.2", *(f"{a} {b}" for a, b in pairs)]
    (folder / "merges.txt").write_text("\n".join(merges) + "\n")
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "do_lower_case": True,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def base_model(tmp_path_factory):
    """A folder in Stable Diffusion v1.5's shape."""
    folder = tmp_path_factory.mktemp("stable-diffusion")
    write_tokenizer(folder / "tokenizer")
    torch.manual_seed(0)
    UNet2DConditionModel(**STABLE_DIFFUSION_UNET).save_pretrained(folder / "unet")
    AutoencoderKL(**STABLE_DIFFUSION_VAE).save_pretrained(folder / "vae")
    CLIPTextModel(CLIPTextConfig(**STABLE_DIFFUSION_TEXT)).save_pretrained(folder / "text_encoder")
    DDPMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        steps_offset=1,
    ).save_pretrained(folder / "scheduler")
    return folder


def prepare(base_model, dataset):
    grid = LocationGrid(256, 256)
    model = load_base_model(str(base_model))
    return prepare_generator(
        model, dataset.categories, "tokens", grid, "largest-first", resolution=64
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_train_save_reload_resume_and_sample(base_model, dataset, attributes, tmp_path):
    layouts = read_layouts(dataset, attributes, "train")
    paths = dict(dataset.image_paths("train"))
    for num_steps in (1, 2):
        config = GeneratorConfig(
            base_model=str(base_model),
            resolution=64,
            num_steps=num_steps,
            batch_size=2,
            num_warmup_steps=0,
            checkpoint_interval=1,
            keep_checkpoints=1,
            ema_decay=None,
            mixed_precision="no",
            gradient_checkpointing=True,
            probe=ProbeConfig(interval=0),
        )
        generator = prepare(base_model, dataset)
        assert len(generator.encoder.tokenizer) == _VOCABULARY_SIZE + 65_536 + 2
        training_set = build_training_set(generator.model, layouts, paths, tmp_path / "set")
        train_generator(generator, training_set, config, tmp_path, "run")
        save_generator(generator, tmp_path / "generator")
        trained = generator.model.unet.conv_in.weight.detach().clone()
        del generator, training_set
        gc.collect()
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    assert all(row["loss_perception"] > 0 for row in rows)
    reloaded = load_generator(tmp_path / "generator")
    assert torch.equal(reloaded.model.unet.conv_in.weight, trained)
    sampling = SamplingConfig(sampler="unipc", num_inference_steps=1, mixed_precision="no")
    assert sample_batch(reloaded, layouts[:1], [0], sampling).shape == (1, 64, 64, 3)
    logger.info("peak memory %.1f GB", peak_memory_bytes() / 1e9)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_memory_at_512_pixels():
    """On an H100 32 images at once took 50.5 GB (docs/gpu.md), of which 18.9 whatever their number."""
    config = build_run("coco-512", {}).train_generator
    shapes = base_shapes(config)
    count = count_training(shapes.unet, shapes.text_encoder, shapes.vae, config, "bf16")
    num_weights = 859_520_964 + 123_060_480 + (65_536 + 2) * 768
    assert count.fixed["weights"] == pytest.approx(4 * num_weights, rel=1e-3)
    assert count.per_image[False] == pytest.approx((50.5e9 - 18.9e9) / 32, rel=0.03)
    assert 0.20e9 < count.per_image[True] < 0.30e9
    assert fit(count, config, 80 * 10**9).num_images == 32


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_24_and_16_and_8_gb_suffice():
    run = build_run("coco-512", {})
    _, rows = memory_table(run.train_generator, run.synthesize.sampling, (24, 16, 8))
    of_24, with_adapters, with_8_bits, of_8 = rows
    assert (of_24["option"], of_24["gradient checkpointing"]) == ("", False)
    assert with_adapters["option"] == "lora_rank=16"
    assert with_8_bits["option"] == "optimizer=adamw-8bit"
    assert [row["images at once"] for row in rows[:3]] == [4, 4, 8]
    assert of_8["option"] == "lora_rank=16 and optimizer=adamw-8bit"
    assert of_8["images drawn at once, at most"] == 2
