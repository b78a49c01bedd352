import errno
import io
import os
import resource
import zipfile

import numpy as np
import pytest
import torch

from data.errors import StorageError
from models.newest_checkpoint import newest_checkpoint


@pytest.fixture
def paths(tmp_path):
    """Three checkpoints, the oldest first."""
    found = [tmp_path / f"{number}.pt" for number in range(3)]
    for number, path in enumerate(found):
        torch.save({"weights": torch.full((2000,), float(number)), "step": number}, path)
    return found


def test_every_flipped_bit_of_what_is_loaded_is_seen(paths):
    rng = np.random.default_rng(0)
    content = paths[2].read_bytes()
    for _ in range(100):
        changed = bytearray(content)
        changed[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        paths[2].write_bytes(changed)
        found = newest_checkpoint(paths)
        if found == paths[2]:  # the bit is of no consequence, as those of padding
            loaded = torch.load(found)
            assert loaded["step"] == 2
            assert torch.equal(loaded["weights"], torch.full((2000,), 2.0))


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.99])
def test_checkpoints_that_were_cut_off_are_set_aside_and_named(paths, caplog, share):
    for path in paths[1:]:
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
    assert newest_checkpoint(paths) == paths[0]
    assert [path.exists() for path in paths] == [True, False, False]
    assert all(f"{path} is damaged" in caplog.text for path in paths[1:])
    assert (paths[0].parent / "checkpoint.damaged").read_bytes() == content[
        : int(share * len(content))
    ]


def test_without_a_whole_checkpoint_there_is_none(paths):
    for path in paths:
        path.write_bytes(b"")
    assert newest_checkpoint(paths) is None
    assert newest_checkpoint([]) is None


def test_what_is_no_longer_stored_as_torch_stores_it_is_damaged(paths):
    with zipfile.ZipFile(paths[2]) as archive:
        method = archive.start_dir + 10
    content = bytearray(paths[2].read_bytes())
    content[method] ^= zipfile.ZIP_DEFLATED
    paths[2].write_bytes(content)
    assert newest_checkpoint(paths) == paths[1]


def test_checkpoints_that_cannot_be_opened_stay(paths):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        with pytest.raises(StorageError, match=r"2\.pt cannot be read \(Too many open files\)"):
            newest_checkpoint(paths)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert newest_checkpoint(paths) == paths[2]


def test_a_checkpoint_stays_whichever_read_of_it_fails(paths, monkeypatch):
    read = {"left": -1}

    class Failing(io.FileIO):
        def _fail(self):
            read["left"] -= 1
            if read["left"] == 0:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

        def readinto(self, buffer):
            self._fail()
            return super().readinto(buffer)

        def readall(self):
            self._fail()
            return super().readall()

    paths[1].write_bytes(b"damaged")
    monkeypatch.setattr(io, "FileIO", Failing)
    for nth in range(1, 100):
        read["left"] = nth
        try:
            assert newest_checkpoint(paths[:2]) == paths[0]
        except StorageError as error:
            assert "Stale file handle" in str(error)  # noqa: PT017  # or none is raised
            assert paths[1].exists()
        else:
            break
    assert nth > 5
    assert read["left"] > 0
