from datetime import date

import pytest

from data.errors import InvalidConfig
from flows.presets import PRESETS
from flows.run_config import RunConfig, build_run
from models.generator.options import NewModelConfig


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_complete_run(name):
    assert build_run(name, {}).preset == name


def test_overrides_lie_over_the_preset_at_any_depth():
    run = build_run("demo", {"synthesize": {"sampling": {"guidance_scale": 7.0}}})
    assert run.synthesize.sampling.guidance_scale == 7.0
    assert (
        run.synthesize.sampling.num_inference_steps
        == (PRESETS["demo"]["synthesize"]["sampling"]["num_inference_steps"])
    )


def test_a_base_model_folder_takes_the_place_of_a_new_model():
    assert isinstance(build_run("demo", {}).train_generator.base_model, NewModelConfig)
    run = build_run("demo", {"train_generator": {"base_model": "some/folder"}})
    assert run.train_generator.base_model == "some/folder"


def test_a_recipe_that_is_asked_for_goes_over_the_presets_options():
    run = build_run("demo", {"train_generator": {"recipe": "geodiffusion", "ema_decay": 0.5}})
    assert run.train_generator.location_embedding == "raw"
    assert run.train_generator.ema_decay == 0.5
    assert run.train_generator.num_steps == build_run("demo", {}).train_generator.num_steps
    asked = {"train_generator": {"recipe": "geodiffusion"}}
    assert build_run("demo", asked).train_generator.ema_decay is None


def test_coco_has_the_released_recipe_and_rates():
    of_256, of_512 = (build_run(f"coco-{size}", {}).train_generator for size in (256, 512))
    assert of_256.rates == (1.5e-4 / 4, 0.75 * 1.5e-4 / 4)
    assert of_512.rates == (4e-5, 3e-5)
    assert of_256.recipe == of_512.recipe == "geodiffusion"
    assert of_512.schedule_stretch == 8


def test_a_run_survives_json():
    run = build_run("demo", {"train_generator": {"num_steps": 5}})
    assert RunConfig.model_validate_json(run.model_dump_json()) == run


@pytest.mark.parametrize(
    ("preset", "overrides", "message"),
    [
        ("nope", {}, "unknown preset 'nope'"),
        ("demo", {"train_generator": {"nope": 1}}, r"train_generator\.nope"),
        (
            "demo",
            {"train_generator": {"num_steps": 0}},
            r"train_generator\.num_steps: .* \(got 0\)",
        ),
        ("demo", {"train_generator": {"resolution": 66}}, "66 is not a multiple"),
        ("demo", {"nope": 1}, "nope: Extra inputs"),
        ("demo", {"ingest": 3}, "ingest"),
        ("demo", {"ingest": {"tile": {"size": 64, "overlap": 1}}}, r"ingest\.tile\.overlap"),
        (
            "demo",
            {"train_scorer": {"overrides": {"made": date(2026, 1, 2)}}},
            r"train_scorer\.overrides\.made: .* JSON value \(got datetime\.date\(2026, 1, 2\)\)",
        ),
        ("demo", {"retrain": {"seeds": []}}, r"retrain\.seeds"),
        ("demo", {"retrain": {"seeds": [1, 1]}}, "each may stand once"),
        ("demo", {"retrain": {"arms": ["real+nothing"]}}, r"retrain\.arms"),
        (
            "demo",
            {"extract_attributes": {"scoring": {"num_folds": 2, "detector": "x"}}},
            "give one of",
        ),
        (
            "demo",
            {"extract_attributes": {"labelling": {"score_threshold": 0.01}}},
            "below scoring.score_threshold",
        ),
    ],
)
def test_what_does_not_exist_is_named(preset, overrides, message):
    with pytest.raises(InvalidConfig, match=message):
        build_run(preset, overrides)
