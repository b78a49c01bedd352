"""A detector's classes and a data set's."""

import pytest

from data.errors import InvalidConfig, InvalidModel
from models.detector.classes import categories_by_name, require_all_classes, require_common_class

THINGS = {3: "cat", 9: "dog"}


def test_classes_are_known_by_name_and_by_the_mapping():
    names = ["dog", "horse", "tabby"]
    assert categories_by_name(names, THINGS) == [(9, "dog"), (-1, "horse"), (-1, "tabby")]
    mapped = categories_by_name(names, THINGS, {"tabby": "cat"})
    assert mapped == [(9, "dog"), (-1, "horse"), (3, "cat")]


@pytest.mark.parametrize(
    ("class_names", "message"),
    [
        ({"zebra": "cat"}, r"the detector has no class 'zebra'; it has 'dog', 'horse'"),
        ({"horse": "zebra"}, r"the data set has no class 'zebra'; it has 'cat', 'dog'"),
    ],
)
def test_a_mapping_of_names_that_are_not_there_is_refused(class_names, message):
    with pytest.raises(InvalidConfig, match=message):
        categories_by_name(["dog", "horse"], THINGS, class_names)


def test_a_detector_without_a_class_of_the_data_set_is_refused():
    names = [f"class {number}" for number in range(80)]
    require_common_class("mine", categories_by_name([*names, "dog"], THINGS), THINGS)
    with pytest.raises(InvalidModel, match=r"mine knows 'class 0', .*80 in all.*'cat', 'dog'"):
        require_common_class("mine", categories_by_name(names, THINGS), THINGS)


def test_a_judge_knows_all_things():
    require_all_classes("theirs", [(1, "cat"), (2, "dog"), (-1, "cow")], {1: "cat", 2: "dog"})
    with pytest.raises(
        InvalidModel, match=r"theirs cannot judge: it does not know 'dog'.*but 'cat'.*class_names"
    ):
        require_all_classes("theirs", [(1, "cat")], {1: "cat", 2: "dog"})
