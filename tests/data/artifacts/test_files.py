"""What people are told of a disk that fails."""

import errno
import os

import pytest

from data.artifacts.files import storage_errors
from data.errors import StorageError


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_failing_disk_is_one_clear_error(tmp_path, number):
    with pytest.raises(StorageError, match=r"the disk under .* fails"), storage_errors(tmp_path):
        raise OSError(number, os.strerror(number))


def test_a_failing_disk_elsewhere_is_not_the_stores(tmp_path):
    with pytest.raises(OSError, match=r"/images/1\.png"), storage_errors(tmp_path):
        raise OSError(errno.EIO, "Input/output error", "/images/1.png")
