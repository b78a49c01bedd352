import base64
import io
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data.errors import InvalidDataset
from data.layouts.gallery import crop, draw_masks
from data.vocabulary.masks import decode_mask
from tasks.pages.inspection import ingest_file, read_attributes, write_inspection


def pictures(page):
    found = re.findall(r"data:image/png;base64,([^\"]*)", page)
    return [Image.open(io.BytesIO(base64.b64decode(text))).size for text in found]


def test_the_page_shows_counts_shares_and_images(dataset, attributes, tmp_path):
    pq.write_table(attributes, tmp_path / "attributes.parquet")
    write_inspection(dataset, tmp_path / "attributes.parquet", tmp_path / "page.html", "My <set>")
    page = (tmp_path / "page.html").read_text()
    assert "<h1>My &lt;set&gt;</h1>" in page
    assert "http" not in page
    assert re.search(r"<td>train</td><td>12</td>", page)
    assert "green easy, red hard" in page
    assert "<td>contrast</td>" in page
    assert "None." in page  # no problems found
    histograms, gallery = pictures(page)
    assert histograms[0] > 1000
    assert gallery == (6 * 208 + 5 * 3, 2 * 208 + 3)  # 12 images


def test_a_coco_file_alone_is_enough_and_its_problems_are_listed(dataset, tmp_path):
    import json

    document = json.loads(dataset.instances_file("val").read_text())
    document["annotations"][0]["category_id"] = 77
    path = tmp_path / "mine.json"
    for item in document["annotations"][1:]:
        x, y, width, height = item["bbox"]
        item["bbox"] = [x, y, x + width, y + height]
    path.write_text(json.dumps(document))
    found, warnings = ingest_file(path, dataset.image_folder("val"), tmp_path / "tables", 1)
    write_inspection(found, None, tmp_path / "page.html", "mine", warnings)
    page = (tmp_path / "page.html").read_text()
    assert re.search(r"<td>train</td><td>6</td>", page)
    assert re.search(r"<td[^>]*>[^<]*category[^<]*</td><td>1</td><td[^>]*>train/", page)
    assert re.search('<p class="missing">[^<]*boxes may be corners', page)
    assert "<td>val</td>" not in page
    assert "no attributes" in page


def test_another_table_is_no_attributes_table(dataset, tmp_path):
    with pytest.raises(InvalidDataset, match="lacks attribute, best_iou"):
        read_attributes(dataset.folder / "objects.parquet")
    (tmp_path / "text.parquet").write_text("text")
    with pytest.raises(InvalidDataset, match=r"text\.parquet is no attributes table"):
        read_attributes(tmp_path / "text.parquet")


def test_masks_are_tinted_where_they_are(layouts):
    layout = layouts[0].with_policy("easy")
    black = np.zeros((layout.height, layout.width, 3), np.uint8)
    things = [m for m, thing in zip(layout.masks, layout.is_thing, strict=True) if thing]
    covered = np.any([decode_mask(m, layout.height, layout.width) for m in things], axis=0)
    tinted = draw_masks(black, layout)
    assert (tinted.any(axis=-1) == covered).all()
    assert (black == 0).all()


def test_a_crop_has_the_box_in_its_middle(tmp_path):
    image = np.zeros((40, 60, 3), np.uint8)
    image[0:12, 10:22] = 255
    Image.fromarray(image).save(tmp_path / "image.png")
    picture = crop(tmp_path / "image.png", np.array([10.0, 0, 22, 12]), 20)
    assert picture.shape == (20, 20, 3)
    assert picture[5:15, 5:15].min() > 200
    assert picture[:, :2].max() == picture[:2].max() == 0
