import json
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import CLIPTextModel, CLIPTokenizer

from data.errors import InvalidConfig, InvalidModel
from data.layouts.prompts import ATTRIBUTE_TOKENS, LocationGrid
from models.generator.modules import (
    compile_blocks,
    create_base_model,
    create_tokenizer,
    load_base_model,
    load_generator,
    new_unet,
    prepare_generator,
    save_base_model,
    save_generator,
)
from models.generator.options import NewModelConfig


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


def test_a_half_precision_folder_has_full_master_weights(saved):
    generator, folder = saved
    for name in ("unet", "text_encoder", "vae"):
        getattr(generator.model, name).half()
    save_base_model(generator.model, folder)
    loaded = load_base_model(str(folder))
    for module in (loaded.unet, loaded.text_encoder, loaded.vae):
        assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}


def test_a_generator_is_the_same_bytes_wherever_it_is_written(saved, tmp_path):
    """Whatever it has read: a training that was killed at its end has no prompt left to read."""
    _, folder = saved
    other = shutil.copytree(folder, tmp_path / "another place")
    copies = [tmp_path / "first", tmp_path / "second"]
    for source, copy in zip((folder, other), copies, strict=True):
        generator = load_generator(source)
        if source == other:
            generator.model.tokenizer(["some words"], padding="max_length", truncation=True)
        save_generator(generator, copy)
    first, second = (
        {path.relative_to(copy): path.read_bytes() for path in copy.rglob("*") if path.is_file()}
        for copy in copies
    )
    assert first == second


def test_the_folder_is_diffusers_format(new_generator, tmp_path):
    folder = tmp_path / "model"
    save_generator(new_generator("tokens"), folder)
    parts = json.loads((folder / "model_index.json").read_text())
    assert parts["unet"] == ["diffusers", "UNet2DConditionModel"]
    assert parts["scheduler"] == ["diffusers", "PNDMScheduler"]
    UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    CLIPTextModel.from_pretrained(folder, subfolder="text_encoder")
    tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
    assert tokenizer.model_max_length == 77
    assert len(tokenizer("a house", add_special_tokens=False).input_ids) >= 1


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("unet", r"model/unet has no diffusion_pytorch_model\.safetensors or"),
        ("vae", r"model/vae has no diffusion_pytorch_model\.safetensors or"),
        ("text_encoder", r"model/text_encoder has no model\.safetensors or pytorch_model\.bin:"),
        ("scheduler", "model is not a Stable Diffusion folder"),
    ],
)
def test_a_folder_without_a_part_is_refused_by_name(saved, part, message):
    _, folder = saved
    for file in (folder / part).iterdir():
        file.unlink()
    with pytest.raises(InvalidModel, match=message):
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


@pytest.fixture
def geodiffusion_folder(new_generator, tmp_path):
    """A folder in GeoDiffusion's released format: location tokens, no attributes, no layout.json."""
    names = ["ball", "crate", "pine", "house", "star", "mushroom", "flower", "kite"]
    images = np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3), dtype=np.uint8)
    shape = NewModelConfig(
        block_out_channels=(16, 32), text_hidden_size=32, text_layers=1, decoder_steps=0
    )
    base = create_base_model(shape, images, [*names, "sky", "grass", "water", "sand"], seed=0)
    base.tokenizer.add_tokens([f"<l{index}>" for index in range(64)])
    base.text_encoder.resize_token_embeddings(len(base.tokenizer), mean_resizing=False)
    save_base_model(base, tmp_path / "geodiffusion")
    return tmp_path / "geodiffusion"


def prepared(folder, dataset, size=8, **options):
    grid, model = LocationGrid(size, size), load_base_model(str(folder))
    return prepare_generator(
        model, dataset.categories, "tokens", grid, "error", resolution=64, **options
    )


def test_geodiffusions_folder_keeps_its_location_tokens(geodiffusion_folder, dataset):
    before = load_base_model(str(geodiffusion_folder))
    generator = prepared(geodiffusion_folder, dataset)
    table = generator.model.text_encoder.get_input_embeddings().weight
    old = before.text_encoder.get_input_embeddings().weight
    assert torch.equal(table[: len(old)], old)
    assert len(table) == len(old) + 2
    for token in ("<l0>", "<l63>"):
        assert generator.encoder.tokenizer.convert_tokens_to_ids(
            token
        ) == before.tokenizer.convert_tokens_to_ids(token)


def test_attributes_start_among_the_words_whatever_the_location_rows(
    geodiffusion_folder, dataset, tmp_path
):
    base = load_base_model(str(geodiffusion_folder))
    table = base.text_encoder.get_input_embeddings().weight
    first = base.tokenizer.convert_tokens_to_ids("<l0>")
    words = table[:first].detach().clone()
    with torch.no_grad():
        table[first:] *= 50  # about as long as the released ones
    save_base_model(base, tmp_path / "long")
    generator = prepared(tmp_path / "long", dataset)
    tokenizer = generator.encoder.tokenizer
    rows = generator.model.text_encoder.get_input_embeddings().weight
    easy, hard = (rows[tokenizer.convert_tokens_to_ids(token)] for token in ATTRIBUTE_TOKENS)
    torch.testing.assert_close((easy + hard) / 2, words.mean(dim=0))
    torch.testing.assert_close((easy - hard) / 2, words.std(dim=0))


def test_geodiffusions_folder_is_driven_by_its_own_prompts(geodiffusion_folder, dataset, layouts):
    generator = prepared(geodiffusion_folder, dataset, perception_attributes=False)
    names = {item.category_id: item.name for item in dataset.categories}
    for layout in layouts:
        phrases = []
        for (left, top, right, bottom), key in zip(layout.boxes, layout.category_ids, strict=True):
            corners = ((left, top), (right, bottom))
            cells = [round(y / 64 * 7) * 8 + round(x / 64 * 7) for x, y in corners]
            phrases.append(f"{names[key]} <l{cells[0]}> <l{cells[1]}>")
        assert generator.encoder.prompt(layout).text == "An image with " + " ".join(phrases)


@pytest.mark.parametrize(("size", "message"), [(9, "64 of the 81"), (4, "larger grid than 4×4")])
def test_another_grid_than_the_folders_is_refused(geodiffusion_folder, dataset, size, message):
    with pytest.raises(InvalidModel, match=message):
        prepared(geodiffusion_folder, dataset, size)


def test_another_architecture_is_refused_by_what_differs(geodiffusion_folder, dataset):
    path = geodiffusion_folder / "text_encoder"
    config = CLIPTextModel.from_pretrained(path).config
    config.hidden_size, config.intermediate_size = 64, 64
    CLIPTextModel(config).save_pretrained(path)
    with pytest.raises(InvalidModel, match="cross_attention_dim of the UNet is 32 and must be 64"):
        prepared(geodiffusion_folder, dataset)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("text_encoder/config.json", {"model_type": "t5"}, "text encoder t5 is none of"),
        (
            "scheduler/scheduler_config.json",
            {"prediction_type": "sample"},
            "prediction sample is none of epsilon, v_prediction",
        ),
        (
            "scheduler/scheduler_config.json",
            {"_class_name": "FlowMatchEulerDiscreteScheduler", "beta_start": None},
            "FlowMatchEulerDiscreteScheduler is not of DDPM's family",
        ),
    ],
)
def test_another_family_is_refused_by_name(geodiffusion_folder, dataset, file, change, message):
    path = geodiffusion_folder / file
    config = json.loads(path.read_text()) | change
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    with pytest.raises(InvalidModel, match=message):
        prepared(geodiffusion_folder, dataset)


def test_a_tokenizer_of_another_text_encoder_is_refused(geodiffusion_folder, dataset):
    path = geodiffusion_folder / "text_encoder"
    config = CLIPTextModel.from_pretrained(path).config
    config.vocab_size = 100
    CLIPTextModel(config).save_pretrained(path)
    with pytest.raises(InvalidModel, match="the text encoder 100 rows"):
        prepared(geodiffusion_folder, dataset)


def test_a_context_without_room_for_one_box_is_refused(new_generator):
    with pytest.raises(InvalidModel, match="8 tokens have no room for a single box"):
        new_generator("tokens", max_prompt_length=8)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own
def test_blocks_are_compiled_once_for_prompts_of_any_length(monkeypatch):
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    shape = NewModelConfig(block_out_channels=(32,), text_hidden_size=32, text_layers=1)
    unet = new_unet(shape, size=8)
    compile_blocks(unet)
    compiled = []
    for length in (5, 6, 9):
        latents = torch.randn(2, unet.config.in_channels, 8, 8)
        states = torch.randn(2, length, 32, requires_grad=True)
        unet(latents, torch.tensor([1, 2]), states).sample.sum().backward()
        compiled.append(counter.frame_count)
    assert compiled[0] == compiled[1] == compiled[2] > 0
