import json

import pytest
import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from data.errors import InvalidConfig, InvalidModel
from data.prompts import LocationGrid
from models.generator import (
    create_tokenizer,
    load_base_model,
    load_generator,
    prepare_generator,
    save_generator,
)


@pytest.fixture
def saved(new_generator, tmp_path):
    generator = new_generator()
    save_generator(generator, tmp_path / "model")
    return generator, tmp_path / "model"


def test_a_generator_comes_back_from_its_folder(saved, layouts):
    generator, folder = saved
    again = load_generator(folder)
    for name in ("unet", "text_encoder", "vae"):
        before = getattr(generator.model, name).state_dict()
        after = getattr(again.model, name).state_dict()
        assert all(torch.equal(before[key], after[key]) for key in before)
    assert again.encoder.prompt(layouts[0]) == generator.encoder.prompt(layouts[0])
    assert again.encoder.categories == generator.encoder.categories
    assert again.model.noise_scheduler.config.prediction_type == "v_prediction"


def test_the_folder_is_diffusers_format(saved):
    _, folder = saved
    assert json.loads((folder / "model_index.json").read_text())["unet"] == [
        "diffusers",
        "UNet2DConditionModel",
    ]
    UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    CLIPTextModel.from_pretrained(folder, subfolder="text_encoder")
    tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
    assert tokenizer.model_max_length == 77
    assert len(tokenizer("a house", add_special_tokens=False).input_ids) >= 1


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "scheduler"])
def test_a_folder_without_a_part_is_refused_by_name(saved, part):
    _, folder = saved
    for file in (folder / part).iterdir():
        file.unlink()
    with pytest.raises(InvalidModel, match="model is not a Stable Diffusion folder"):
        load_base_model(str(folder))


def test_an_unknown_autoencoder_is_refused_by_name(saved):
    _, folder = saved
    path = folder / "vae" / "config.json"
    path.write_text(path.read_text().replace("PatchAutoencoder", "VQModel"))
    with pytest.raises(InvalidModel, match="VQModel"):
        load_base_model(str(folder))


def test_every_class_name_is_one_token_and_case_does_not_matter():
    tokenizer = create_tokenizer(["An image with", "ball", "house", "traffic-light"], 32)
    ids = tokenizer("An image with ball HOUSE", add_special_tokens=False).input_ids
    assert len(ids) == 5
    assert tokenizer.convert_ids_to_tokens(ids) == ["an", "image", "with", "ball", "house"]
    assert tokenizer.eos_token_id not in ids


def test_a_resolution_that_does_not_fit_the_autoencoder_is_refused(new_generator, dataset):
    model = new_generator("tokens").model
    with pytest.raises(InvalidConfig, match="66 is not a multiple"):
        prepare_generator(
            model, dataset.categories, "tokens", LocationGrid(8, 8), "error", resolution=66
        )


def test_a_loaded_base_samples_at_the_resolution_it_is_trained_at(new_generator, dataset):
    model = new_generator("tokens").model
    prepare_generator(
        model, dataset.categories, "tokens", LocationGrid(8, 8), "error", resolution=32
    )
    assert model.unet.config.sample_size == 8
