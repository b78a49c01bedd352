import re
from datetime import date

import pytest

from data.errors import InvalidConfig
from data.layouts.options import Protocol
from flows.presets import PRESETS, kept, merge
from flows.run_config import RunConfig, build_run, changes_to_preset
from models.detector.options import DetectorConfig
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


def test_a_mapping_with_delete_takes_the_presets_place():
    own = {"config": "my.py", "overrides": {"_delete_": True, "model.x": {"_delete_": True}}}
    detector = build_run("smoke", {"train_detector": own}).train_detector
    assert detector.overrides == {"model.x": {"_delete_": True}}  # MMEngine's stays
    assert (detector.config, detector.num_iterations) == ("my.py", 8)
    alone = build_run("smoke", {"train_detector": {"_delete_": True, "num_epochs": 2}})
    assert alone.train_detector == DetectorConfig(num_epochs=2)
    with pytest.raises(InvalidConfig, match="_delete_: unknown option"):
        build_run("smoke", {"_delete_": True})


def test_options_over_options_keep_the_mark_for_the_preset():
    file, line = {"overrides": {"model.x": 1}}, {"overrides": {"_delete_": True, "model.y": 2}}
    for over in (merge(file, line), merge(line, file)):
        overrides = build_run("smoke", {"train_detector": over}).train_detector.overrides
        assert overrides == {
            name: over["overrides"][name] for name in over["overrides"] if "." in name
        }


def test_smoke_stays_quick_whatever_a_file_for_another_preset_says():
    long = {"num_epochs": 24, "image_size": [640, 480], "batch_size": 2}
    file = {
        "train_detector": long,
        "retrain": {"detector": long},
        "train_generator": {
            "base_model": "some/folder",
            "num_epochs": 60,
            "recipe": "geodiffusion",
        },
        "train_scorer": {"_delete_": True, "num_epochs": 3},
        "synthesize": {"num_train_layouts": None, "sampling": {"guidance_scale": 7.0}},
        "pretrain_generator": {"num_steps": 4000, "boxes": "none"},
        "ingest": {"masks": "none", "scenes": {"num_unlabelled": 16}},
    }
    file["retrain"]["others"] = {"yolox": {"config": "mmdet::yolox/yolox_s_8xb8-300e_coco.py"}}
    taken, own = kept("smoke", file)
    run, smoke = build_run("smoke", taken), build_run("smoke", {})
    assert own == [
        "pretrain_generator.num_steps",
        "retrain.detector.image_size",
        "retrain.detector.num_epochs",
        "retrain.others",
        "synthesize.num_train_layouts",
        "train_detector.image_size",
        "train_detector.num_epochs",
        "train_generator.base_model",
        "train_generator.num_epochs",
    ]
    assert set(changes_to_preset(run)) >= {
        "ingest.masks",
        "train_detector.batch_size",
        "retrain.detector.batch_size",
        "train_generator.recipe",
        "synthesize.sampling.guidance_scale",
    }
    for name in ("image_size", "num_epochs", "num_iterations"):
        expected = getattr(smoke.train_detector, name)
        assert getattr(run.train_detector, name) == expected
        assert getattr(run.retrain.detector, name) == expected
    assert run.train_generator.base_model == smoke.train_generator.base_model
    assert run.train_generator.num_steps == smoke.train_generator.num_steps
    assert run.train_scorer == DetectorConfig(num_epochs=3)
    assert (run.pretrain_generator.num_steps, run.pretrain_generator.boxes) == (12, "none")
    assert not run.retrain.others
    assert kept("fine-tune", file) == (file, [])


def test_what_a_run_has_not_of_its_preset_is_a_change():
    run = build_run("smoke", {"train_detector": {"overrides": {"_delete_": True}}})
    names = {name.partition(".overrides.")[0] for name in changes_to_preset(run)}
    assert names == {"train_detector"}
    assert set(changes_to_preset(run).values()) == {None}
    folder = build_run("smoke", {"train_generator": {"base_model": "some/folder"}})
    assert changes_to_preset(folder) == {"train_generator.base_model": "some/folder"}


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


def test_own_data_is_fine_tuned_by_the_released_rate_for_each_image():
    run = build_run("fine-tune", {"train_generator": {"batch_size": 16}})
    assert run.train_generator.rates == (1.5e-4 / 16, 0.75 * 1.5e-4 / 16)
    assert run.train_generator.in_steps(1000).num_steps == 60 * 1000 / 16
    assert {run.protocol(use) for use in ("generator", "train", "val")} == {Protocol()}
    assert run.train_detector == run.retrain.detector  # which is then trained once


def test_a_run_survives_json():
    run = build_run("demo", {"train_generator": {"num_steps": 5}})
    assert RunConfig.model_validate_json(run.model_dump_json()) == run


@pytest.mark.parametrize(
    ("options", "place", "meant"),
    [
        ({"train_generator": {"num_step": 5}}, "train_generator.num_step", "num_steps"),
        (
            {"train_generator": {"base_model": {"patch_siz": 4}}},
            "train_generator.base_model.patch_siz",
            "patch_size",
        ),
        ({"layouts": {"max_object": 3}}, "layouts.max_object", "max_objects"),
        (
            {"retrain": {"others": {"yolox": {"num_epoch": 3}}}},
            "retrain.others.yolox.num_epoch",
            "num_epochs",
        ),
        ({"ingest": {"tile": {"sise": 64}}}, "ingest.tile.sise", "size"),
    ],
)
def test_an_unknown_option_is_named_in_full_with_what_may_be_meant(options, place, meant):
    expected = f"{place}: unknown option; did you mean {meant}?"
    with pytest.raises(InvalidConfig, match=re.escape(expected)):
        build_run("smoke", options)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"layouts": {"min_objects": 9, "max_objects": 3}}, "layouts: Value error, no image has"),
        ({"layouts": "lama"}, "layouts: Input should be 'lama-val' or 'synthetic-train' or a"),
        ({"synthesize": {"val_layouts": 5}}, "synthesize.val_layouts: Input should be"),
        ({"train_generator": {"layouts": 5}}, "train_generator.layouts: Input should be"),
        (
            {"train_generator": {"base_model": 5}},
            "train_generator.base_model: Input should be text",
        ),
        (
            {"train_generator": {"gradient_accumulation_steps": 0}},
            "train_generator.gradient_accumulation_steps: Input should be",
        ),
        (
            {"train_generator": {"gradient_checkpointing": "no way"}},
            "train_generator.gradient_checkpointing: Input should be",
        ),
        (
            {"extract_attributes": {"scoring": {"detector": {"config": "x.py"}}}},
            "extract_attributes.scoring.detector.checkpoint: Field required",
        ),
        (
            {"evaluate": {"scorer": {"config": "x.py"}}},
            "evaluate.scorer.checkpoint: Field required",
        ),
        (
            {"evaluate": {"scorers": {"a": {"cfg": "a", "names": "b"}}}},
            "evaluate.scorers.a.weights: Field required",
        ),
        (
            {"ingest": {"train": {"instances": 5, "images": "a"}}},
            "ingest.train.instances: Input should be a path or a list",
        ),
        (
            {"ingest": {"train": {"instances": "a", "stuff": [5], "images": "a"}}},
            "ingest.train.stuff.0: Input is not",
        ),
    ],
)
def test_a_mistake_where_a_value_may_be_of_several_kinds_is_one_sentence(options, problem):
    with pytest.raises(InvalidConfig, match=f"is not valid: {re.escape(problem)}[^;]*$"):
        build_run("demo", options)


def test_prefect_shows_what_may_be_meant_too():
    from prefect.exceptions import ParameterTypeError

    from flows.stages import end_to_end

    given = {"preset": "smoke", "train_generator": {"num_step": 5}}
    with pytest.raises(
        ParameterTypeError, match=r"num_step: unknown option; did you mean num_steps\?"
    ):
        end_to_end.validate_parameters({"config": given, "num_cores": None})


@pytest.mark.parametrize(
    ("preset", "overrides", "message"),
    [
        ("nope", {}, "unknown preset 'nope': choose one of smoke, .*[^?]$"),
        ("smok", {}, "unknown preset 'smok': .*; did you mean smoke[?]$"),
        ("demo", {"train_generator": {"nope": 1}}, r"train_generator\.nope"),
        (
            "demo",
            {"train_generator": {"num_steps": -1}},
            r"train_generator\.num_steps: .* \(got -1\)",
        ),
        (
            "demo",
            {"train_generator": {"num_steps": 0}},
            "num_epochs is 0 and num_steps 0: one of .* how long to train \\(a file of `detdiffusion new` ",
        ),
        ("demo", {"train_scorer": {"num_processes": 3}}, "is not a multiple of num_processes 3$"),
        ("fine-tune", {"train_generator": {"num_steps": 9}}, "num_epochs is 60 and num_steps 9: "),
        ("demo", {"train_generator": {"resolution": 66}}, "66 is not a multiple"),
        ("demo", {"nope": 1}, r"valid: nope: unknown option \(got 1\)$"),
        ("demo", {"retrian": {}}, r"valid: retrian: unknown option; did you mean retrain\?"),
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
