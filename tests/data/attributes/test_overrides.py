import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from data.attributes.overrides import override_attributes, read_overrides
from data.errors import InvalidDataset


def test_single_boxes_are_overridden_in_their_split_alone(attributes):
    overrides = pa.table({"object_id": [2], "attribute": ["hard"]})
    easy = attributes.set_column(
        attributes.schema.get_field_index("attribute"),
        "attribute",
        pa.array(["easy"] * attributes.num_rows),
    )
    changed = override_attributes(easy, overrides, "train")
    hard = changed.filter(pc.field("attribute") == "hard").to_pylist()
    assert [(row["split"], row["object_id"]) for row in hard] == [("train", 2)]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"object_id": [1]}, "need the columns"),
        ({"object_id": [1], "attribute": ["dull"]}, "values .'dull'."),
    ],
)
def test_a_table_of_something_else_is_refused(tmp_path, overrides, message):
    pq.write_table(pa.table(overrides), tmp_path / "overrides.parquet")
    with pytest.raises(InvalidDataset, match=message):
        read_overrides(tmp_path / "overrides.parquet")


def test_a_table_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InvalidDataset, match=r"synthesize\.attribute_overrides"):
        read_overrides(tmp_path / "overrides.parquet")


def test_unknown_objects_are_refused(attributes):
    overrides = pa.table({"object_id": [10**6], "attribute": ["hard"]})
    with pytest.raises(InvalidDataset, match=r"unknown things of train: \[1000000\]"):
        override_attributes(attributes, overrides, "train")
