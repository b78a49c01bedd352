import hashlib
import os
import sqlite3
import time

import pytest

from data.artifacts import digests
from data.artifacts.digests import MEMORY_NAME, DigestMemory, file_digest


@pytest.fixture
def reads(monkeypatch):
    """Paths of the files that were read."""
    seen, read = [], digests.file_digest
    monkeypatch.setattr(digests, "file_digest", lambda path: seen.append(path) or read(path))
    return seen


@pytest.fixture
def old_file(tmp_path):
    """A file that was last changed long ago."""
    path = tmp_path / "file"
    path.write_bytes(b"0123")
    os.utime(path, (1000, 1000))
    return path


def test_a_file_is_read_once_as_long_as_it_does_not_change(old_file, tmp_path, reads):
    expected = hashlib.sha256(b"0123").hexdigest()
    for _ in range(2):
        with DigestMemory(tmp_path) as memory:
            assert memory.files([old_file, old_file]) == [expected, expected]
    assert len(set(reads)) == 1
    assert len(reads) <= 2
    count = len(reads)
    old_file.write_bytes(b"4567")
    with DigestMemory(tmp_path) as memory:
        assert memory.file(old_file) == hashlib.sha256(b"4567").hexdigest()
    assert len(reads) == count + 1


def test_a_file_that_was_just_written_is_not_remembered(old_file, tmp_path):
    """It may be written again within the grain of its time stamp."""
    now = time.time_ns()
    with DigestMemory(tmp_path) as memory:
        os.utime(old_file, ns=(now, now))
        memory.file(old_file)
        old_file.write_bytes(b"4567")
        os.utime(old_file, ns=(now, now))
        assert memory.file(old_file) == hashlib.sha256(b"4567").hexdigest()


def test_a_folder_is_known_by_names_and_contents(tmp_path):
    (tmp_path / "a" / "sub").mkdir(parents=True)
    (tmp_path / "a" / "sub" / "x").write_text("1")
    before = DigestMemory().folder(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    assert DigestMemory().folder(tmp_path / "b") == before
    (tmp_path / "b" / "sub" / "x").rename(tmp_path / "b" / "x")
    assert DigestMemory().folder(tmp_path / "b") != before


def test_a_fact_is_found_once_for_a_content(old_file, tmp_path):
    found = []

    def find(path):
        found.append(path)
        return [path.read_text()]

    for _ in range(2):
        with DigestMemory(tmp_path) as memory:
            assert memory.fact(old_file, "text", find) == ["0123"]
    assert len(found) == 1


def test_a_memory_that_cannot_be_used_is_done_without(old_file, tmp_path):
    (tmp_path / MEMORY_NAME).write_text("no database")
    with DigestMemory(tmp_path) as memory:
        assert memory.file(old_file) == hashlib.sha256(b"0123").hexdigest()
    with DigestMemory(tmp_path / "nowhere") as memory:
        assert memory.file(old_file)
    assert not (tmp_path / "nowhere").exists()


def test_more_files_than_a_query_takes(tmp_path):
    paths = [tmp_path / str(number) for number in range(1203)]
    for path in paths:
        path.write_text(path.name)
        os.utime(path, (1000, 1000))
    with DigestMemory(tmp_path) as memory:
        first = memory.files(paths)
        assert memory.files(paths[::-1]) == first[::-1]
    assert len(set(first)) == len(paths)
    rows = sqlite3.connect(tmp_path / MEMORY_NAME).execute("SELECT count(*) FROM files")
    assert rows.fetchone() == (len(paths),)


def test_what_was_read_before_there_was_a_folder_can_be_kept(old_file, tmp_path, reads):
    with DigestMemory(tmp_path / "later") as memory:
        digest = memory.file(old_file)
        (tmp_path / "later").mkdir()
        memory.save(tmp_path / "later")
        memory.save(tmp_path / "later")
    with DigestMemory(tmp_path / "later") as memory:
        assert memory.file(old_file) == digest
    assert len(reads) == 1


@pytest.mark.parametrize("start", [0, 4096], ids=["no database", "a damaged page"])
def test_a_damaged_memory_is_made_anew(old_file, tmp_path, reads, start):
    with DigestMemory(tmp_path) as memory:
        memory.file(old_file)
        memory.fact(old_file, "fact", lambda path: ["true"])
    content = bytearray((tmp_path / MEMORY_NAME).read_bytes())
    content[start:] = b"\xff" * (len(content) - start)
    (tmp_path / MEMORY_NAME).write_bytes(content)
    with DigestMemory(tmp_path) as memory:
        assert memory.file(old_file) == hashlib.sha256(b"0123").hexdigest()
        assert memory.fact(old_file, "fact", lambda path: ["found again"]) == ["found again"]
    count = len(reads)
    with DigestMemory(tmp_path) as memory:
        memory.file(old_file)
    assert len(reads) == count


def test_an_error_of_reading_from_an_open_file_names_it():
    with pytest.raises(OSError, match="error: '/proc/self/mem'"):  # whose beginning is nothing
        file_digest("/proc/self/mem")
