"""From a user's COCO file to a run: what is written, and that it can be planned."""

import json
import re
import tomllib

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from data.coco.near_duplicates import KEYS
from data.errors import InvalidConfig, InvalidDataset
from flows import new_config
from flows.command_line import app
from flows.new_config import write_config
from flows.own_data import NewConfig
from flows.run_config import build_run
from tasks.estimates.forecast import Forecast

NUM_CLASSES = 37


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Factory of a user's data set; the working folder is that of the call."""
    monkeypatch.chdir(tmp_path)

    def create(
        num_images=60, size=(320, 240), sides=(40, 90), classes=NUM_CLASSES, most=9, outline=None
    ):
        rng, images, annotations = np.random.default_rng(0), [], []
        (tmp_path / "my/images").mkdir(parents=True, exist_ok=True)
        for image_id in range(1, num_images + 1):
            name = f"film{image_id % 6}_{image_id:03d}.png"
            Image.new("RGB", size).save(tmp_path / "my/images" / name)
            images.append(
                dict(zip(("width", "height"), size, strict=True), id=image_id, file_name=name)
            )
            for _ in range(rng.integers(1, most + 1)):
                width, height = rng.integers(*sides, 2, endpoint=True).tolist()
                x, y = (
                    int(rng.integers(0, a - b)) for a, b in zip(size, (width, height), strict=True)
                )
                annotations.append(
                    {"id": len(annotations) + 1, "image_id": image_id, "iscrowd": 0,
                     "category_id": len(annotations) % classes + 1, "bbox": [x, y, width, height],
                     "area": width * height, "of my own": 7,
                     **({} if outline is None else {"segmentation": [outline(x, y, width, height)]})}
                )  # fmt: skip
        categories = [{"id": key, "name": f"class {key}"} for key in range(1, classes + 1)]
        document = {"images": images, "annotations": annotations, "categories": categories}
        write(tmp_path, document)
        return document

    return create


def write(folder, document):
    (folder / "my/instances.json").write_text(json.dumps(document))


def rectangle(x, y, width, height):
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def call(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


def new(tmp_path, **options):
    given = {"instances": tmp_path / "my/instances.json", "images": tmp_path / "my/images",
             "val": None, "val_images": None, "out": tmp_path / "my.toml",
             "group_by": None, "force": False, **options}  # fmt: skip
    return write_config(NewConfig(**given), 1)


def written(tmp_path):
    return tomllib.loads((tmp_path / "my.toml").read_text())


def test_what_is_written_is_planned_without_a_warning(
    own, tmp_path, base_folder, monkeypatch, caplog
):
    document = own()
    made = call("new", "my/instances.json", "--images", "my/images")
    assert made.exit_code == 0, made.exception
    assert made.stdout.split() == ["instances_train.json", "instances_val.json", "my.toml"]
    monkeypatch.setenv("DETDIFFUSION_HOME", str(tmp_path / "root"))
    monkeypatch.setattr(Forecast, "shortages", lambda *_: [])  # of the machine of this test
    base = ("--set", f"train_generator.base_model={base_folder}")
    kept = (
        "smoke keeps its own retrain.detector.image_size, train_detector.image_size, "
        "train_generator.num_epochs, train_generator.resolution: --set changes them"
    )
    for arguments, expected in (
        (("fine-tune", "--config", "my.toml", *base), []),
        (("smoke", "--config", "my.toml"), [kept]),
    ):
        planned = call("plan", *arguments)
        assert planned.exit_code == 0, planned.exception
        said = planned.stderr.splitlines()
        assert [line for line in said if not line.startswith("to be downloaded")] == expected
    assert caplog.records == []
    parts = [
        json.loads((tmp_path / f"instances_{name}.json").read_text()) for name in ("train", "val")
    ]
    assert [len(part["images"]) for part in parts] == [48, 12]
    for name in ("images", "annotations"):
        both = sorted((item for part in parts for item in part[name]), key=lambda item: item["id"])
        assert both == document[name]
    assert {part["categories"] == document["categories"] for part in parts} == {True}


def test_options_follow_from_the_data(own, tmp_path):
    document = own()
    notes = new(tmp_path)
    run = build_run("fine-tune", written(tmp_path))
    counts = {name: np.bincount([item["image_id"] for item in part["annotations"]])
              for name in ("train", "val")
              for part in [json.loads((tmp_path / f"instances_{name}.json").read_text())]}  # fmt: skip
    ninths = [np.quantile(item[item > 0], 0.9, method="inverted_cdf") for item in counts.values()]
    assert run.layouts.max_objects == max(ninths)
    assert (run.ingest.masks, run.ingest.tile) == ("none", None)
    assert run.train_generator.resolution == 256
    assert run.train_generator.probe.sampling.guidance_scale == 4
    assert run.synthesize.sampling.guidance_scale == 4
    assert run.train_detector.image_size == run.retrain.detector.image_size == (640, 480)
    assert notes[0].startswith(
        f"48 images to train on and 12 to validate on, {NUM_CLASSES} classes"
    )
    num_layouts = (counts["train"] > 0) & (counts["train"] <= run.layouts.max_objects)
    steps = run.train_generator.in_steps(num_layouts.sum()).num_steps
    assert (
        f"{steps} steps of 8, of {num_layouts.sum()} layouts" in (tmp_path / "my.toml").read_text()
    )
    assert len(document["annotations"]) == sum(item.sum() for item in counts.values())


def test_photographs_with_masks_are_left_as_the_preset_has_them(own, tmp_path):
    own(num_images=10, size=(900, 700), sides=(100, 300), most=3, outline=rectangle)
    new(tmp_path)
    assert set(written(tmp_path)) == {
        "ingest", "layouts", "extract_attributes", "train_generator"
    }  # fmt: skip
    assert written(tmp_path)["train_generator"].keys() == {"num_epochs"}
    assert set(written(tmp_path)["ingest"]) == {"train", "val"}


@pytest.mark.parametrize(("fewest", "is_raised"), [(10, False), (80, True), (10_000, True)])
def test_few_layouts_are_passed_over_as_often_as_words_are_learnt(
    own, tmp_path, monkeypatch, fewest, is_raised
):
    monkeypatch.setattr(new_config, "_FEWEST_STEPS", fewest)
    own(num_images=10, most=1)  # 60 epochs of eight layouts, in batches of eight, are 60 steps
    new(tmp_path)
    generator = build_run("fine-tune", written(tmp_path)).train_generator
    assert generator.num_epochs == generator.in_steps(8).num_steps == (fewest if is_raised else 60)
    told = " ".join((tmp_path / "my.toml").read_text().replace("\n#", "").split())
    reason = ": the text encoder's new words, easy and hard among them, need steps, not epochs."
    raised = f"{fewest} in place of the preset's 60 are {fewest} steps of 8, of 8 layouts{reason}"
    assert (raised in told) == is_raised
    assert (reason in told) == is_raised


@pytest.mark.parametrize(("few", "num_folds"), [(49, 3), (48, 0)])
def test_few_images_are_scored_by_detectors_that_did_not_see_them(
    own, tmp_path, monkeypatch, few, num_folds
):
    own()  # of whose 60 images 48 are trained on
    monkeypatch.setattr(new_config, "_FEW_IMAGES", few)
    new(tmp_path)
    run = build_run("fine-tune", written(tmp_path))
    assert run.extract_attributes.scoring.num_folds == num_folds


def test_small_objects_in_large_images_are_cut_out_in_tiles_and_counted_there(
    own, tmp_path, monkeypatch
):
    monkeypatch.setattr(new_config, "_FEWEST_STEPS", 100)
    monkeypatch.setattr(new_config, "_MOST_STEPS", 200)
    own(num_images=10, size=(1000, 800), sides=(20, 30), most=40)
    notes = new(tmp_path)
    run = build_run("fine-tune", written(tmp_path))
    (told,) = re.findall(
        r"cut into (\d+) and (\d+) tiles of 224 pixels, about 0\.\d+ GB", str(notes)
    )
    num_tiles = int(told[0])
    assert num_tiles / 8 == pytest.approx(
        24, abs=6
    )  # of 1000 × 800 pixels with a quarter of overlap
    for config in (run.train_detector, run.train_scorer, run.retrain.detector):
        assert 0 < config.num_epochs < 24
        assert config.iterations(num_tiles) <= 200
    assert 0 < run.train_generator.num_epochs < 60
    assert run.ingest.tile.size == 224  # eight times 25, in whole 32
    assert run.layouts.max_objects < 10
    text = " ".join((tmp_path / "my.toml").read_text().replace("\n#", "").split())
    found = re.search(
        r"Objects a tile, of the (\d+) of (\d+) to train on that have some: (\d+) \(a tenth have no more\), "
        r"\d+ \(half\), (\d+) \(nine tenths\)", text
    )  # fmt: skip
    some, of_all, tenth, most = map(int, found.groups())
    assert some < of_all == num_tiles
    assert 1 <= tenth <= most <= run.layouts.max_objects


def test_dense_layouts_are_said_to_leave_the_prompt(own, tmp_path):
    own(num_images=10, most=60)
    new(tmp_path)
    assert "room for 18" in " ".join((tmp_path / "my.toml").read_text().split())


def test_images_that_belong_together_are_not_torn_apart(own, tmp_path):
    own()
    new(tmp_path, group_by="^(film[0-9])_")
    films = [films_of(tmp_path / f"instances_{name}.json") for name in ("train", "val")]
    assert films[0].isdisjoint(films[1])
    assert len(films[1]) == 2  # of six, for a fifth of the images
    ingest = tomllib.loads((tmp_path / "my.toml").read_text())["ingest"]
    assert ingest["group_by"] == "^(film[0-9])_"  # of folds and intervals too


def films_of(path):
    return {item["file_name"][:5] for item in json.loads(path.read_text())["images"]}


def test_frames_of_films_are_found_and_stay_together_unless_the_user_says_how(own, tmp_path):
    document, rng = own(), np.random.default_rng(0)
    scenes = rng.integers(0, 256, (6, 6, 8), np.uint8)
    for item in document["images"]:
        film, frame = map(int, re.findall("[0-9]+", item["file_name"]))
        size = (item["width"], item["height"])
        scene = Image.fromarray(scenes[film]).resize((size[0] + 60, size[1]))
        image = scene.crop((frame, 0, frame + size[0], size[1]))  # six pixels from frame to frame
        image.save(tmp_path / "my/images" / item["file_name"])
    parts = [tmp_path / "instances_train.json", tmp_path / "instances_val.json"]
    made = call("new", "my/instances.json", "--images", "my/images")
    told = (
        "60 of 60 images looked at are nearly the same as another (film0_006.png and film0_012.png)"
    )
    assert told in made.stderr
    assert films_of(parts[0]).isdisjoint(films_of(parts[1]))
    text = " ".join((tmp_path / "my.toml").read_text().replace("\n#", "").split())
    assert told in text
    assert f"for validation: what '{KEYS[0]}' matches alike stays together" in text
    made = call("new", "my/instances.json", "--images", "my/images", "--group-by", ".*", "--force")
    assert "nearly the same" not in made.stderr + (tmp_path / "my.toml").read_text()
    assert not films_of(parts[0]).isdisjoint(films_of(parts[1]))


def test_given_validation_images_are_taken_as_they_are(own, tmp_path):
    own(num_images=6)
    val = tmp_path / "my/val.json"
    val.write_bytes((tmp_path / "my/instances.json").read_bytes())
    notes = new(tmp_path, val=val, out=tmp_path / "deep/er/my.toml")
    assert any("6 image files are in train and in val too, such as" in note for note in notes)
    assert [path.name for path in (tmp_path / "deep/er").iterdir()] == ["my.toml"]
    splits = tomllib.loads((tmp_path / "deep/er/my.toml").read_text())["ingest"]
    assert (splits["train"]["instances"], splits["val"]["instances"]) == (
        str(tmp_path / "my/instances.json"), str(val),
    )  # fmt: skip


def test_nothing_is_written_over_unless_that_is_asked_for_and_never_what_was_given(own, tmp_path):
    own(num_images=6)
    new(tmp_path)
    with pytest.raises(InvalidConfig, match=r"instances_train\.json is there: .*--force"):
        new(tmp_path)
    new(tmp_path, force=True)
    given = tmp_path / "instances_train.json"
    with pytest.raises(InvalidConfig, match=r"instances_train\.json would be written over"):
        new(tmp_path, instances=given, force=True)


def test_options_do_not_take_the_place_of_a_part(own, tmp_path):
    own(num_images=6)
    with pytest.raises(InvalidConfig, match=r"--out .*instances_train\.json .* ends in \.toml"):
        new(tmp_path, out=tmp_path / "instances_train.json", force=True)
    assert not (tmp_path / "instances_train.json").exists()


def test_corners_in_place_of_sides_are_noted(own, tmp_path):
    document = own(num_images=10)
    for item in document["annotations"]:
        x, y, width, height = item["bbox"]
        item["bbox"] = [x, y, x + width, y + height]
    write(tmp_path, document)
    notes = new(tmp_path)
    assert sum("boxes may be corners, [x1, y1, x2, y2]" in note for note in notes) == 2


def test_turned_images_are_named(own, tmp_path):
    document = own(num_images=6)
    exif = Image.Exif()
    exif[0x0112] = 6
    item = document["images"][2]
    item["file_name"] = "turned.jpg"
    size = (item["width"], item["height"])
    Image.new("RGB", size).save(tmp_path / "my/images/turned.jpg", exif=exif)
    write(tmp_path, document)
    notes = new(tmp_path)
    told = [note for note in notes if "turns or mirrors 1 images (turned.jpg)" in note]
    assert 'as they are stored, and sizes say so of 1 of 1; ingest.exif = "shown"' in str(told)


def turn(tmp_path, document, orientations):
    """Store the images with EXIF, which their annotations know nothing of."""
    for item, orientation in zip(document["images"], orientations, strict=True):
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / "my/images" / item["file_name"]
        Image.new("RGB", (item["width"], item["height"])).save(path, format="JPEG", exif=exif)


@pytest.mark.parametrize("others", [8, 3])
def test_annotations_of_images_as_stored_are_read_so_and_none_is_left_out(own, tmp_path, others):
    document = own(num_images=12)
    turn(tmp_path, document, [*[6] * 6, *[others] * 6])
    notes = new(tmp_path)
    assert written(tmp_path)["ingest"]["exif"] == "stored"
    assert "9 images to train on and 3 to validate on" in notes[0]
    assert not any("left out" in note or "EXIF turns it" in note for note in notes)
    assert " are turned with the images" in (tmp_path / "my.toml").read_text()


@pytest.mark.parametrize(("orientation", "told"), [(3, "no size tells"), (6, "5 of 12")])
def test_where_few_sizes_say_so_annotations_are_of_images_as_shown(
    own, tmp_path, orientation, told
):
    document = own(num_images=12)
    turn(tmp_path, document, [orientation] * 12)
    if orientation == 6:
        for item in document["images"][:5]:
            item["width"], item["height"] = item["height"], item["width"]
        write(tmp_path, document)
    notes = new(tmp_path, group_by="_00([0-9])")
    assert "exif" not in written(tmp_path)["ingest"]
    assert any(told in note and 'ingest.exif = "stored"' in note for note in notes)
    assert (notes[0] == "7 of 12 images are left out") == (orientation == 6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": []}, "it names no image"),
        ({"annotations": []}, "no usable object; no annotations$"),
        ({"images": "one"}, "one image, which cannot be split: give validation images as --val"),
        ({"categories": []}, r"no usable object; \d+ × unknown category \([^)]*\)$"),
    ],
)
def test_a_data_set_that_cannot_be_used_is_one_clear_message(own, tmp_path, changes, message):
    document = own(num_images=4)
    if changes == {"images": "one"}:
        changes = {"images": document["images"][:1]}
    write(tmp_path, {**document, **changes})
    with pytest.raises(InvalidDataset, match=message):
        new(tmp_path)
    assert not (tmp_path / "my.toml").exists()


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"images": []}', "no JSON"])
def test_a_file_that_is_no_coco_file_is_named(own, tmp_path, text):
    own(num_images=4)
    (tmp_path / "my/instances.json").write_text(text)
    with pytest.raises(InvalidDataset, match=r"instances\.json is not a COCO file"):
        new(tmp_path)


def test_a_wrong_folder_of_images_is_named(own, tmp_path):
    own(num_images=4)
    with pytest.raises(InvalidDataset, match=r"nowhere does not exist or is no folder"):
        new(tmp_path, images=tmp_path / "nowhere")
    with pytest.raises(InvalidDataset, match=r"4 × image file missing .*give as --images"):
        new(tmp_path, images=tmp_path)


def renamed(tmp_path, document, name):
    """Write the file with other names, which are made of the images' own."""
    images = [{**item, "file_name": name(item["file_name"])} for item in document["images"]]
    write(tmp_path, {**document, "images": images})


def test_names_that_begin_a_folder_above_name_it(own, tmp_path):
    renamed(tmp_path, own(num_images=4), "images/{}".format)
    with pytest.raises(
        InvalidDataset, match=rf"image file missing .*: try --images {tmp_path}/my$"
    ):
        new(tmp_path)


def test_names_of_another_case_are_told_from_missing_files(own, tmp_path):
    renamed(tmp_path, own(num_images=4), lambda name: name.replace("png", "PNG"))
    message = r"differs in case .*: write names as the files have them, such as film\d_00\d\.png$"
    with pytest.raises(InvalidDataset, match=message):
        new(tmp_path)


def test_names_of_another_machine_are_to_be_relative(own, tmp_path):
    renamed(tmp_path, own(num_images=4), "/home/alice/{}".format)
    with pytest.raises(InvalidDataset, match="leaves the image folder: write names relative to it"):
        new(tmp_path)


def test_options_for_fine_tune_are_told_from_those_of_other_presets(own, tmp_path):
    own(num_images=4)
    new(tmp_path)
    with pytest.raises(InvalidConfig, match=r"another preset takes its \[ingest\] alone"):
        build_run("demo", written(tmp_path))


def test_groups_that_cannot_be_made_are_named(own, tmp_path):
    document = own(num_images=4)
    with pytest.raises(InvalidConfig, match=r"--group-by '\(' is no expression"):
        new(tmp_path, group_by="(")
    with pytest.raises(InvalidDataset, match="4 images all belong together by 'film'"):
        new(tmp_path, group_by="film")
    for expression in ("scan", "(scan)?film"):
        with pytest.raises(InvalidConfig, match=r"matches no file name, such as film1_001\.png:"):
            new(tmp_path, group_by=expression)
    write(tmp_path, {**document, "images": []})
    with pytest.raises(InvalidDataset, match="it names no image"):
        new(tmp_path, group_by="film")


def test_an_expression_that_matches_some_names_is_noted(own, tmp_path):
    own(num_images=12)
    assert any(
        "'film[12]' matches 4 of 12 names" in note for note in new(tmp_path, group_by="film[12]")
    )
    told = new(tmp_path, group_by="film.", force=True)
    assert not any("--group-by" in note for note in told)


def test_options_that_would_have_no_effect_are_refused(own, tmp_path):
    own(num_images=4)
    with pytest.raises(InvalidConfig, match="--group-by says how images are split, but --val"):
        new(tmp_path, val=tmp_path / "my/instances.json", group_by="film")
    with pytest.raises(InvalidConfig, match="--val-images needs --val"):
        new(tmp_path, val_images=tmp_path)


def test_one_class_is_enough(own, tmp_path):
    own(num_images=10, classes=1)
    assert "1 classes" in new(tmp_path)[0]
    assert build_run("fine-tune", written(tmp_path)).ingest.splits
