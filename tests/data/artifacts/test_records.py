import json

import pytest

from data.artifacts.records import RecordedStep, read_records, write_record
from data.errors import InvalidRecord

STEP = RecordedStep(names=("a", "b"), stages=("s",), kind="k", key="0")


def test_records_are_read_the_newest_first(tmp_path):
    written = [write_record(tmp_path, "run", name, {"x": 1}, (STEP,)) for name in "abc"]
    assert list(read_records(tmp_path)) == written[::-1]
    assert written[0].step("b") == STEP
    assert written[0].step("c") is None
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_store_without_runs_has_no_records(tmp_path):
    assert list(read_records(tmp_path)) == []


def test_a_record_of_a_newer_version_is_one_clear_error(tmp_path):
    write_record(tmp_path, "run", "a", {}, ())
    (path,) = (tmp_path / "runs").iterdir()
    document = json.loads(path.read_text()) | {"format": 2, "new": True}
    path.write_text(json.dumps(document))
    with pytest.raises(InvalidRecord, match="newer version of detdiffusion"):
        list(read_records(tmp_path))


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 1}', '{"format": "1"}'])
def test_a_damaged_record_is_named(tmp_path, text):
    write_record(tmp_path, "run", "a", {}, ())
    (path,) = (tmp_path / "runs").iterdir()
    path.write_text(text)
    with pytest.raises(InvalidRecord, match=path.name):
        list(read_records(tmp_path))
