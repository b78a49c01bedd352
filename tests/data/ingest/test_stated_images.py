import json

import pytest
from PIL import Image

from data.ingest.options import SplitConfig
from data.ingest.stated_images import StatedImages, stated_images


def test_what_is_stated_and_what_exif_says_are_counted(tmp_path):
    images = []
    for key, (orientation, size) in enumerate(
        [
            (1, (8, 6)),
            (6, (8, 6)),
            (6, (6, 8)),
            (8, (9, 9)),
            (3, (8, 6)),
            (6, (6, 6)),
            (None, (8, 6)),
        ]
    ):
        name = f"{key}.jpg"
        if orientation:
            exif = Image.Exif()
            exif[0x0112] = orientation
            stored = (6, 6) if size == (6, 6) else (8, 6)
            Image.new("RGB", stored).save(tmp_path / name, exif=exif)
        width, height = size
        images.append({"id": key, "file_name": name, "width": width, "height": height})
    images += [{"id": 8, "file_name": "../8.jpg", "width": 8, "height": 6}, {"id": 9}]
    document = {"images": images, "annotations": [], "categories": []}
    (tmp_path / "a.json").write_text(json.dumps(document))
    found = stated_images([SplitConfig(instances=tmp_path / "a.json", images=tmp_path)])
    turned = [f"{key}.jpg" for key in (1, 2, 3, 4, 5)]
    assert found == StatedImages(count=9, turned=turned, num_shown=1, num_stored=1)


@pytest.mark.parametrize(
    ("num_shown", "num_stored", "exif"),
    [(0, 0, "shown"), (1, 0, "shown"), (0, 1, "stored"), (1, 9, "stored"), (2, 9, "shown")],
)
def test_annotations_are_of_what_nearly_all_sizes_say(num_shown, num_stored, exif):
    assert StatedImages(num_shown=num_shown, num_stored=num_stored).exif == exif
