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
from models.devices import peak_memory_bytes
from models.generator.modules import (
    load_base_model,
    load_generator,
    prepare_generator,
    save_generator,
)
from models.generator.options import GeneratorConfig, ProbeConfig, SamplingConfig
from models.generator.sampling import sample_batch
from models.training.loop import train_generator
from models.training.metrics_file import read_metrics
from models.training.training_set import build_training_set

logger = logging.getLogger(__name__)

_VOCABULARY_SIZE = 49_408


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
    UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(320, 640, 1280, 1280),
        cross_attention_dim=768,
        attention_head_dim=8,
    ).save_pretrained(folder / "unet")
    AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        sample_size=512,
    ).save_pretrained(folder / "vae")
    CLIPTextModel(
        CLIPTextConfig(
            vocab_size=_VOCABULARY_SIZE,
            hidden_size=768,
            intermediate_size=3072,
            projection_dim=768,
            num_hidden_layers=12,
            num_attention_heads=12,
            bos_token_id=_VOCABULARY_SIZE - 2,
            eos_token_id=_VOCABULARY_SIZE - 1,
            pad_token_id=_VOCABULARY_SIZE - 1,
        )
    ).save_pretrained(folder / "text_encoder")
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
