import math
import os

import pytest

from models.nvidia import Gpu, known_gpus

SAID = """0, GPU-1a2b-77, 81559, NVIDIA H100 80GB HBM3
1, GPU-9c, [N/A], Odd, with a comma
"""
FIRST = Gpu("GPU-1a2b-77", "NVIDIA H100 80GB HBM3", 81559 * 2**20)
SECOND = Gpu("GPU-9c", "Odd, with a comma", math.inf)


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """Stands for the driver's command."""

    def says(script):
        command = tmp_path / "nvidia-smi"
        command.write_text(f"#!/bin/sh\n{script}")
        command.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    return says


@pytest.mark.parametrize(
    ("names", "known"),
    [
        (("0", "1"), {"0": FIRST, "1": SECOND}),
        (("1",), {"1": SECOND}),
        (("GPU-1a2b", "7"), {"GPU-1a2b": FIRST}),
        (("MIG-GPU-9c/1/0",), {}),
        ((), {}),
    ],
)
def test_gpus_are_known_by_what_cuda_calls_them(driver, names, known):
    driver(f"cat <<'END'\n{SAID}END\n")
    assert known_gpus(names) == known


def test_without_a_driver_none_is_known(driver, monkeypatch):
    driver("echo 'has failed because it could not communicate with the driver'; exit 9")
    assert known_gpus(("0",)) == {}
    monkeypatch.setenv("PATH", "")
    assert known_gpus(("0",)) == {}
