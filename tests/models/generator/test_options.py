"""What is known of a base model and of layouts before anything is run."""

import json
from collections import Counter

import numpy as np
import pyarrow.compute as pc
import pytest
import torch
from pydantic import ValidationError
from safetensors.numpy import save_file

from data.artifacts.digests import DigestMemory
from data.errors import InvalidConfig, InvalidDataset, InvalidModel
from data.layouts.layout import read_layouts
from data.layouts.options import Protocol
from models.generator.drawing_options import SyntheticSetOptions
from models.generator.modules import load_base_model
from models.generator.options import GeneratorConfig, NewModelConfig, ProbeConfig
from models.generator.recipes import RELEASED_RATES


def foreign(options):
    return options.foreign(DigestMemory())


def test_a_base_model_is_known_by_the_content_of_its_parts(base_folder, tmp_path):
    before = foreign(GeneratorConfig(base_model=str(base_folder)))
    (base_folder / "README.md").write_text("about")
    assert foreign(GeneratorConfig(base_model=str(base_folder))) == before
    base_folder.rename(tmp_path / "moved")
    moved = GeneratorConfig(base_model=str(tmp_path / "moved"))
    assert foreign(moved) == before
    (tmp_path / "moved" / "tokenizer" / "vocab.json").write_text('{"a": 1}')
    assert foreign(moved) != before


def test_a_training_needs_a_gpu_for_each_of_its_processes():
    assert GeneratorConfig(num_processes=4).num_gpus == 4


HOSTS = {"num_nodes": 2, "num_processes": 4, "rdzv_endpoint": "first:29400"}


def test_processes_are_spread_over_hosts_and_the_key_does_not_know():
    config = GeneratorConfig(**HOSTS, distributed_backend="gloo")
    assert config.num_gpus == 2
    assert config.keyed() == GeneratorConfig().keyed()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rdzv_endpoint": None}, "num_nodes from 2 on and rdzv_endpoint, .*need each other"),
        ({"num_nodes": 1}, "need each other"),
        ({"rdzv_endpoint": "first"}, "should match pattern"),
        ({"rdzv_endpoint": "tcp://first:29400"}, "should match pattern"),
        ({"num_processes": 1}, "num_processes 1 is not a multiple of num_nodes 2"),
    ],
)
def test_hosts_that_cannot_find_each_other_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        GeneratorConfig(**HOSTS | changes)


@pytest.mark.parametrize(("num_images", "num_steps"), [(1, 1), (16, 5), (17, 6), (1000, 313)])
def test_epochs_are_of_the_images_that_are_trained_on(num_images, num_steps):
    config = GeneratorConfig(num_epochs=2.5, num_steps=0, batch_size=8)
    assert config.in_steps(num_images) == GeneratorConfig(num_steps=num_steps, batch_size=8)
    assert GeneratorConfig(num_steps=7).in_steps(num_images).num_steps == 7


def test_a_length_in_steps_has_the_key_that_it_had():
    assert "num_epochs" not in GeneratorConfig().keyed()
    assert GeneratorConfig(num_epochs=3, num_steps=0).keyed()["num_epochs"] == 3


def test_a_folder_that_is_no_base_model_is_refused(tmp_path):
    (tmp_path / "unet").mkdir()
    with pytest.raises(InvalidModel, match="it has no scheduler, text_encoder, tokenizer, vae"):
        foreign(GeneratorConfig(base_model=str(tmp_path)))


@pytest.fixture
def refused(base_folder):
    """Says why the folder is refused: the same before anything is made and when it is loaded."""

    def why():
        errors = []
        for use in (lambda name: foreign(GeneratorConfig(base_model=name)), load_base_model):
            with pytest.raises(InvalidModel) as found:
                use(str(base_folder))
            errors.append(str(found.value))
        assert errors[0] == errors[1]
        return errors[0]

    return why


@pytest.fixture
def in_two_files(base_folder):
    """The UNet's folder with its weights in two files, and their index."""
    part, names = base_folder / "unet", ["w-1-of-2.safetensors", "w-2-of-2.safetensors"]
    (part / "diffusion_pytorch_model.safetensors").unlink()
    for name in names:
        save_file({name: np.zeros(9)}, part / name)
    index = {"weight_map": {name: name for name in names}}
    (part / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    foreign(GeneratorConfig(base_model=str(base_folder)))
    return part


@pytest.mark.parametrize("size", [0, 5, 100])
def test_weights_that_are_cut_short_are_refused_by_name(in_two_files, refused, size):
    path = in_two_files / "w-2-of-2.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    assert f"{path} is cut short or damaged" in refused()


@pytest.mark.parametrize("size", [0, 5, 1000])
def test_so_are_those_of_torch(base_folder, refused, size):
    path = base_folder / "text_encoder" / "pytorch_model.bin"
    path.with_name("model.safetensors").unlink()
    torch.save({"weight": torch.zeros(999)}, path)
    foreign(GeneratorConfig(base_model=str(base_folder)))
    path.write_bytes(path.read_bytes()[:size])
    assert f"{path} is cut short or damaged (torch's archive has no end)" in refused()


def test_an_index_that_names_a_missing_file_is_refused(in_two_files, refused):
    (in_two_files / "w-2-of-2.safetensors").unlink()
    assert "index.json names w-2-of-2.safetensors, which is missing: download it again" in refused()


@pytest.mark.parametrize("content", ["", '{"weight_map": {"a"', "[]", "{}", '{"weight_map": 5}'])
def test_an_index_that_is_cut_short_is_refused(in_two_files, refused, content):
    path = in_two_files / "diffusion_pytorch_model.safetensors.index.json"
    path.write_text(content)
    assert f"{path} is missing or damaged" in refused()


@pytest.mark.parametrize(
    "content", [b"version https://git-lfs.github.com/spec/v1", b"<!DOCTYPE html>"]
)
def test_what_stands_for_weights_is_refused(base_folder, refused, content):
    path = base_folder / "vae" / "diffusion_pytorch_model.bin"
    path.with_suffix(".safetensors").unlink()
    path.write_bytes(content)
    assert f"{path} is cut short or damaged" in refused()
    torch.save({"weight": torch.zeros(9)}, path, _use_new_zipfile_serialization=False)
    foreign(GeneratorConfig(base_model=str(base_folder)))


def test_files_beside_the_weights_that_are_loaded_are_no_matter(base_folder):
    part = base_folder / "unet"
    (part / "diffusion_pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "gone"}}')
    (part / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"pointer")
    (part / "diffusion_pytorch_model.non_ema.bin").write_bytes(b"")
    foreign(GeneratorConfig(base_model=str(base_folder)))


def test_a_part_with_weights_of_a_variant_alone_is_refused(base_folder, refused):
    path = base_folder / "vae" / "diffusion_pytorch_model.safetensors"
    path.rename(path.with_name("diffusion_pytorch_model.fp16.safetensors"))
    message = (
        f"{path.parent} has no diffusion_pytorch_model.safetensors or diffusion_pytorch_model.bin"
    )
    assert message in refused()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "unet/config.json",
            {"_class_name": "UNet3DConditionModel"},
            "UNet3DConditionModel is none",
        ),
        ("vae/config.json", {"_class_name": "AutoencoderDC"}, "autoencoder AutoencoderDC is none"),
        ("text_encoder/config.json", {"model_type": "t5"}, "text encoder t5 is none of"),
        (
            "scheduler/scheduler_config.json",
            {"_class_name": "Flow"},
            "Flow is not of DDPM's family",
        ),
    ],
)
def test_another_family_is_refused_before_anything_is_made(
    base_folder, refused, file, content, message
):
    (base_folder / file).write_text(json.dumps(content))
    assert message in refused()


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("unet/config.json", {"in_channels": 9}, "input channels of the UNet is 9 and must be 4"),
        ("unet/config.json", {"cross_attention_dim": 2048}, "is 2048 and must be 768"),
        (
            "unet/config.json",
            {"addition_embed_type": "text_time"},
            "addition_embed_type of the UNet",
        ),
        (
            "vae/config.json",
            {"latent_channels": 16},
            "input channels of the UNet is 4 and must be 16",
        ),
    ],
)
def test_another_architecture_is_refused_before_anything_is_made(
    base_folder, file, change, message
):
    path = base_folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InvalidModel, match=message):
        foreign(GeneratorConfig(base_model=str(base_folder)))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A cache of the hub with one model, and no way out."""
    from huggingface_hub import constants

    commit = "0123456789" * 4
    root = tmp_path / "hub" / "models--some--model"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(commit)
    (root / "snapshots" / commit / "unet").mkdir(parents=True)
    (root / "snapshots" / commit / "model_index.json").write_text("{}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return root / "snapshots" / commit


def test_a_hub_id_is_known_by_its_commit_and_the_download_is_named(hub):
    config = GeneratorConfig(base_model="some/model")
    assert foreign(config) == {"base_model": f"some/model@{hub.name}"}
    assert foreign(
        GeneratorConfig(base_model="some/model", base_model_revision=hub.name)
    ) == foreign(config)
    assert config.downloads() == ("some/model (revision main) from the Hugging Face hub",)
    (hub / "unet" / "diffusion_pytorch_model.safetensors").write_text("")
    assert config.downloads() == ()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/no/such/folder", "neither a folder nor a hub id"),
        ("some/modle", "can be reached"),
    ],
)
def test_a_mistyped_base_model_is_refused(hub, name, message):
    with pytest.raises(InvalidModel, match=message):
        foreign(GeneratorConfig(base_model=name))


def test_a_hub_that_cannot_be_reached_is_told_at_once(monkeypatch):
    from huggingface_hub.errors import HTTPError

    def refuse(*_, **options):
        assert options["timeout"] < 5
        raise HTTPError("no route to host")

    monkeypatch.setattr("huggingface_hub.model_info", refuse)
    with pytest.raises(InvalidModel, match=r"in the cache or can be reached.*no route to host"):
        foreign(GeneratorConfig(base_model="some/model"))


def test_a_model_that_is_not_here_is_pinned_in_the_cache(monkeypatch, tmp_path):
    asked = []

    def download(name, file, *, revision, etag_timeout):
        path = tmp_path / "snapshots" / "5ead" / file
        path.parent.mkdir(parents=True)
        path.touch()
        return str(path)

    monkeypatch.setattr("huggingface_hub.model_info", lambda name, **_: asked.append(name))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert foreign(GeneratorConfig(base_model="some/model")) == {"base_model": "some/model@5ead"}
    assert asked == ["some/model"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            GeneratorConfig(layouts=Protocol(min_area_fraction=0.99)),
            InvalidDataset,
            "no train image has a usable",
        ),
        (
            SyntheticSetOptions(split="val", protocol=Protocol(min_objects=50)),
            InvalidDataset,
            "no val image",
        ),
        (
            SyntheticSetOptions(split="train", class_policies={"dragon": "easy"}),
            InvalidConfig,
            "dragon.*no things of the data set",
        ),
    ],
)
def test_what_a_data_set_makes_impossible_is_refused(dataset, options, error, message):
    with pytest.raises(error, match=message):
        options.check(dataset)


def test_a_probe_without_layouts_is_refused_and_none_is_not(dataset):
    """Of validation images with so few things there are none, of training images some."""
    counts = {
        split: min(
            Counter(
                dataset.objects.filter((pc.field("split") == split) & pc.field("is_thing"))[
                    "image_id"
                ].to_pylist()
            ).values()
        )
        for split in ("train", "val")
    }
    few = GeneratorConfig(layouts=Protocol(max_objects=counts["train"]))
    assert counts["train"] < counts["val"]
    with pytest.raises(InvalidDataset, match=r"no val image.*or set probe\.interval=0"):
        few.check(dataset)
    few.model_copy(update={"probe": ProbeConfig(interval=0)}).check(dataset)


def test_rates_follow_the_batch_in_proportion_or_not_at_all():
    given = {"learning_rate": 1e-3, "text_learning_rate": 2e-3, "base_batch_size": 64}
    assert GeneratorConfig(**given, batch_size=16).rates == (2.5e-4, 5e-4)
    assert GeneratorConfig(**given, batch_size=16, rate_scaling="none").rates == (1e-3, 2e-3)


def test_a_recipe_fills_in_what_is_not_given():
    config = GeneratorConfig(recipe="geodiffusion", ema_decay=0.9)
    assert (config.foreground_overlap, config.ema_decay) == ("last", 0.9)


IMAGES = (
    "train_generator.learning_rate is 0.00015 for a batch of 64, 4 times the rate for each image"
)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"learning_rate": 1.5e-4}, [IMAGES]),
        (RELEASED_RATES, []),
        ({"learning_rate": 1.5e-4, "recipe": "ours"}, [IMAGES]),
        (
            {**RELEASED_RATES, "rate_scaling": "none"},
            [IMAGES, "train_generator.text_learning_rate is 0.0001125 for a batch of 64, 4 times"],
        ),
        ({"learning_rate": 1.5e-4, "base_model": NewModelConfig()}, []),
        (
            {**RELEASED_RATES, "text_learning_rate": 1e-2},
            [
                "train_generator.text_learning_rate is 0.0025 for a batch of 64, 89 times the rate for"
            ],
        ),
        ({"text_learning_rate": 0}, []),
        ({"learning_rate": 1.5e-4, "lora_rank": 16}, []),
        (
            {"text_learning_rate": 3e-4, "lora_rank": 16},
            [
                "train_generator.text_learning_rate is 0.0003 for a batch of 64, 11 times the rate for"
            ],
        ),
    ],
)
def test_rates_of_another_batch_are_told_where_they_are_used(caplog, options, told):
    config = GeneratorConfig(**({"recipe": "geodiffusion", "base_batch_size": 64} | options))
    config.check_without_data()
    messages = [record.message for record in caplog.records if "learning_rate" in record.message]
    assert len(messages) == len(told)
    assert all(part in text for part, text in zip(told, messages, strict=True))


def test_things_that_training_does_not_see_are_told(dataset, caplog):
    trained = Protocol(min_area_fraction=0.06)
    SyntheticSetOptions(split="train", protocol=trained, trained_on=trained).check(dataset)
    assert not caplog.records
    SyntheticSetOptions(split="train", trained_on=trained).check(dataset)
    (message,) = [record.message for record in caplog.records]
    things = dataset.objects.filter((pc.field("split") == "train") & pc.field("is_thing"))
    seen = sum(
        len(item.boxes[item.is_thing]) for item in read_layouts(dataset, None, "train", trained)
    )
    assert f"{things.num_rows - seen} of {things.num_rows} things" in message
    assert "min_area_fraction 0.06 there and 0.0 here" in message
    assert 0 < seen < things.num_rows
