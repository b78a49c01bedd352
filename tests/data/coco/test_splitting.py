import hashlib
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.coco.splitting import group_of, held_out, read_document, split_document
from data.errors import InvalidDataset


@pytest.mark.parametrize(
    ("name", "pattern", "group"),
    [
        ("a/b_1.jpg", None, "a/b_1.jpg"),
        ("a/b_1.jpg", "^[^/]+", "a"),
        ("a/b_1.jpg", "(b)_[0-9]+", "b"),
        ("a/c.jpg", "(b)_[0-9]+", "a/c.jpg"),
        ("a/b_1.jpg", "(x)?b", "a/b_1.jpg"),  # an empty match says nothing
    ],
)
def test_a_group_is_what_the_expression_matches(name, pattern, group):
    assert group_of(name, pattern and re.compile(pattern)) == group


@given(st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=60), st.floats(0.01, 0.5))
def test_whole_groups_are_held_out_and_never_more_than_half(groups, share):
    chosen, sizes = held_out(groups, share), Counter(groups)
    count = sum(sizes[group] for group in chosen)
    assert count <= len(groups) / 2
    assert chosen or len(sizes) == 1
    left = [group for group in sizes if group not in chosen]
    assert left
    if count < share * len(groups):  # then each other one is too large
        assert all(count + sizes[group] > len(groups) / 2 for group in left)


def test_the_choice_is_by_digests_of_names_and_of_nothing_else():
    names = [f"{number}.jpg" for number in range(100)]
    first = sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())[:20]
    assert held_out(names, 0.2) == held_out(names[::-1], 0.2) == set(first)


def test_what_belongs_to_no_image_that_is_held_out_stays_in_the_first_part():
    document = {
        "info": {"year": 1}, "categories": [{"id": 1}],
        "images": [{"id": 1, "file_name": "a"}, {"id": "2", "file_name": "b"}, {"id": 3}, "broken"],
        "annotations": [{"id": 5, "image_id": 1.0}, {"id": 6, "image_id": 2}, {"image_id": 9}, None],
    }  # fmt: skip
    train, val = split_document(document, None, 0.5)
    (image,) = val["images"]
    (annotation,) = val["annotations"]
    assert int(annotation["image_id"]) == int(image["id"]) in {1, 2}
    for part in (train, val):
        assert (part["info"], part["categories"]) == (document["info"], document["categories"])
    assert len(train["images"]) == len(train["annotations"]) == 3


def test_a_file_that_breaks_off_inside_of_its_annotations_is_named(tmp_path):
    path = tmp_path / "broken.json"
    path.write_text('{"images": [], "categories": [], "annotations": [{"id": 1, "bbox": [nope]}]}')
    with pytest.raises(InvalidDataset, match=r"broken\.json is not a COCO file"):
        read_document(path)


def test_a_byte_order_mark_is_passed_over(tmp_path):
    path = tmp_path / "marked.json"
    path.write_text('{"images": [], "categories": [], "annotations": []}', encoding="utf-8-sig")
    assert read_document(path) == {"images": [], "categories": [], "annotations": []}
