import numpy as np
import pytest
import torch

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
def test_checkpoints_that_were_cut_off_are_removed_and_named(paths, caplog, share):
    for path in paths[1:]:
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
    assert newest_checkpoint(paths) == paths[0]
    assert [path.exists() for path in paths] == [True, False, False]
    assert all(f"{path} is damaged" in caplog.text for path in paths[1:])


def test_without_a_whole_checkpoint_there_is_none(paths):
    for path in paths:
        path.write_bytes(b"")
    assert newest_checkpoint(paths) is None
    assert newest_checkpoint([]) is None
