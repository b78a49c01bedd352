from data.filters import PROTOCOLS
from data.layouts import count_objects, read_layouts
from flows.presets import build_run
from models.config import SynthesisConfig
from tasks.synthesize import _chosen_layouts


def test_counts_of_the_protocols_stand_beside_the_published_ones(dataset):
    config = SynthesisConfig(train_protocol="synthetic-train", val_protocol="lama-val")
    rows = _chosen_layouts(dataset, config)
    assert [(row["split"], row["published"]) for row in rows] == [
        ("train", "train2017: 47,429 images, 210,893 objects"),
        ("val", "val2017: 3,097 images"),
    ]
    for row, name in zip(rows, ("synthetic-train", "lama-val"), strict=True):
        layouts = read_layouts(dataset, None, row["split"], PROTOCOLS[name])
        assert row["images"] == len(layouts)
        assert row["things"] == count_objects(layouts)
        assert row["things"] + row["stuff"] == sum(len(layout.boxes) for layout in layouts)
    assert not any("published" in row for row in _chosen_layouts(dataset, SynthesisConfig()))


def test_the_coco_presets_follow_the_protocols():
    for preset in ("coco-256", "coco-512"):
        options = build_run(preset, {}).synthesize
        assert (options.train_protocol, options.val_protocol) == ("synthetic-train", "lama-val")
