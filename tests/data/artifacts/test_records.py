import json
from datetime import UTC, datetime
from unittest.mock import Mock

import pytest

from data.artifacts import records
from data.artifacts.records import RecordedStep, read_records, write_record
from data.errors import InvalidRecord, StorageError

STEP = RecordedStep(names=("a", "b"), stages=("s",), kind="k", key="0")


def test_records_are_read_the_newest_first(tmp_path):
    written = [write_record(tmp_path, "run", name, {"x": 1}, (STEP,)) for name in "abc"]
    assert list(read_records(tmp_path)) == written[::-1]
    assert written[0].step("b") == STEP
    assert written[0].step("c") is None
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_record_is_the_newest_though_the_clock_was_set_back(tmp_path, monkeypatch):
    before = write_record(tmp_path, "run", "before", {}, (STEP,))
    clock = Mock(wraps=datetime)
    clock.now.return_value = datetime(2001, 1, 1, tzinfo=UTC)
    monkeypatch.setattr(records, "datetime", clock)
    later = [write_record(tmp_path, "run", name, {}, (STEP,)) for name in ("after", "last")]
    assert list(read_records(tmp_path)) == [*later[::-1], before]
    assert {item.created_at for item in later} == {"2001-01-01T00:00:00+00:00"}


def test_a_record_is_written_beside_a_file_of_somebody_elses(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "notes.json").write_text("{}")
    write_record(tmp_path, "run", "a", {}, (STEP,))


def test_a_store_without_runs_has_no_records(tmp_path):
    assert list(read_records(tmp_path)) == []


def test_a_record_of_a_newer_version_is_one_clear_error(tmp_path):
    write_record(tmp_path, "run", "a", {}, ())
    (path,) = (tmp_path / "runs").iterdir()
    document = json.loads(path.read_text()) | {"format": 2, "new": True}
    path.write_text(json.dumps(document))
    with pytest.raises(InvalidRecord, match="newer version of detdiffusion"):
        list(read_records(tmp_path))


def test_a_record_that_cannot_be_read_is_not_to_be_moved_away(tmp_path, unreadable):
    written = write_record(tmp_path, "run", "a", {}, ())
    (path,) = (tmp_path / "runs").iterdir()
    for item in (path, path.parent):
        unreadable.add(str(item))
        with pytest.raises(StorageError, match=rf"fails \(.*{item.name}'\): run again"):
            list(read_records(tmp_path))
        unreadable.clear()
    assert list(read_records(tmp_path)) == [written]


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 1}', '{"format": "1"}'])
def test_a_damaged_record_is_named(tmp_path, text):
    write_record(tmp_path, "run", "a", {}, ())
    (path,) = (tmp_path / "runs").iterdir()
    path.write_text(text)
    with pytest.raises(InvalidRecord, match=path.name):
        list(read_records(tmp_path))
