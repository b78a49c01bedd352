import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import psutil
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "scripts"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKED = [Requirement(line) for line in (ROOT / "requirements.lock").read_text().splitlines()[1:]]


@pytest.fixture
def environment(tmp_path):
    """A Prefect home and a port of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return {name: value for name, value in os.environ.items() if "PREFECT" not in name} | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PREFECT_HOME": str(tmp_path),
        "PREFECT_SERVER_API_PORT": str(port),
    }


def down(environment):
    """What `scripts/down` says."""
    return subprocess.check_output([SCRIPTS / "down"], env=environment, text=True)


def test_down_ends_all_that_up_started(environment, tmp_path):
    note = tmp_path / f"up-{environment['PREFECT_SERVER_API_PORT']}.pid"
    with subprocess.Popen([SCRIPTS / "up"], env=environment) as up:
        try:
            deadline = time.monotonic() + 60
            while not (note.exists() and note.read_text().endswith("\n")):
                assert time.monotonic() < deadline
                time.sleep(0.1)
            while not (started := psutil.Process(up.pid).children(recursive=True)):
                assert time.monotonic() < deadline
                time.sleep(0.1)
            assert "stopped" in down(environment)
            assert up.wait(10) == 143
        finally:
            up.terminate()
    _, alive = psutil.wait_procs(started, timeout=10)
    assert not alive
    assert not list(tmp_path.glob("*.pid"))


def test_down_says_when_nothing_is_up(environment, tmp_path):
    assert "nothing is up" in down(environment)
    port = environment["PREFECT_SERVER_API_PORT"]
    (tmp_path / f"up-{port}.pid").write_text(str(os.getpid()))  # of a run that was killed
    assert "nothing is up" in down(environment)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_gpu_check_runs_small_on_a_cpu(environment, tmp_path):
    """A minute where nothing else runs."""
    command = [sys.executable, SCRIPTS / "gpu-check", "--tiny", "--out", tmp_path / "found.json"]
    environment |= {"PYTHONPATH": str(SCRIPTS.parent), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert not [row for row in rows if row["what"] == "ended early"]
    of_parts = {}
    for row in rows:
        of_parts.setdefault(row["part"], []).append(row)
    equal = {row["what"]: row["equal"] for row in of_parts.pop("equalities")}
    assert [equal[k] for k in ("fp32", "fp32, LoRA", "bf16", "fp16")] == [True, True, True, None]
    assert of_parts.pop("memory")[0]["note"] == "there is no GPU"
    assert list(of_parts) == ["training", "sampling", "detector", "features", "smoke"]
    assert all(
        value > 0 for part in of_parts.values() for r in part for value in r["values"].values()
    )


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_gpu_check_goes_on_after_a_part_whose_process_dies(environment, tmp_path):
    command = [sys.executable, SCRIPTS / "gpu-check", "--tiny", "--out", tmp_path / "found.json"]
    command += ["--part", "detector", "features"]
    environment |= {"PYTHONPATH": str(SCRIPTS.parent), "CUDA_VISIBLE_DEVICES": ""}
    with psutil.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as check:
        assert any(line.startswith("detector ") for line in check.stderr)  # it has one row
        [worker] = (child for child in check.children() if "spawn_main" in str(child.cmdline()))
        worker.kill()
        assert check.wait(200) == 0, check.stderr.read()
    *_, died, features = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert died["what"] == "ended early"
    assert died["note"] == "its process ended with status -9"
    assert features["values"]["images/s"] > 0


def test_the_locked_versions_are_allowed():
    extras = PROJECT["optional-dependencies"]
    allowed = [*PROJECT["dependencies"], *extras["ray"], *extras["dev"]]
    locked = {item.name.lower().replace("_", "-"): str(item.specifier)[2:] for item in LOCKED}
    others = (item for item in map(Requirement, allowed) if item.name != PROJECT["name"])
    for item in others:
        assert item.specifier.contains(locked[item.name]), item
    assert any(item.name == "torch" and item.specifier.contains("2.14.1+cpu") for item in LOCKED)


def test_setup_takes_torch_from_another_index_without_the_libraries_of_cuda(tmp_path):
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    python, calls = tmp_path / "python", tmp_path / "calls"
    python.write_text(f"""#!/bin/sh
mkdir -p .venv/bin
printf '#!/bin/sh\necho "$@" >>{calls}' >.venv/bin/pip
chmod +x .venv/bin/pip
""")
    python.chmod(0o755)

    def setup(*arguments):
        calls.write_text("")
        (tmp_path / ".venv" / "installed").unlink(missing_ok=True)
        environment = {name: value for name, value in os.environ.items() if name != "TORCH_INDEX"}
        command = ["make", "setup", f"PYTHON={python}", *arguments]
        subprocess.check_call(command, cwd=tmp_path, env=environment)
        return [shlex.split(line) for line in calls.read_text().splitlines()]

    plain, own = setup()
    assert plain[-2:] == ["--requirement", "requirements.lock"]
    assert own[-2:] == ["--editable", "."]
    index = ["--extra-index-url", "https://download.pytorch.org/whl/cpu"]
    locked, torch, _ = setup(f"TORCH_INDEX={index[1]}")
    assert all(index == call[call.index(index[0]) :][:2] for call in (locked, torch))
    assert torch[-1] == "torch"
    installed = (tmp_path / locked[-1]).read_text()
    assert "\ntorch==" in installed
    assert "nvidia" not in installed
    assert "nvidia" in (tmp_path / "requirements.lock").read_text()


def test_the_workflow_calls_what_exists_with_versions_that_are_allowed():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yaml").read_text())
    for job in workflow["jobs"].values():
        for step in job["steps"]:
            if "run" in step:
                program = shlex.split(step["run"])[0]
                assert program in {"pip", "pipx"} or os.access(ROOT / program, os.X_OK), step
    versions = workflow["jobs"]["versions"]["strategy"]["matrix"]["versions"]
    script = (SCRIPTS / "test-versions").read_text()
    assert versions == re.search(r"set -- (.*)", script)[1].split()
    for item in versions:
        python, which = item.split("-")
        assert SpecifierSet(PROJECT["requires-python"]).contains(python)
        assert which in {"oldest", "newest"}


def test_versions_are_shown_and_one_failure_is_one_of_all(tmp_path):
    def program(name, text):
        path = tmp_path / name
        path.write_text(f"#!/bin/bash\n{text}")
        path.chmod(0o755)
        return path

    passes, fails = program("passes", "exit 0"), program("fails", "exit 1")
    uv = program("uv", f"""
case "$1 $2" in
"pip freeze") echo torch==2.11.0 ;;
venv*)
    folder="${{@: -1}}"
    mkdir -p "$folder/bin"
    cp {passes} "$folder/bin/detdiffusion"
    [[ "$folder" = *3.13* ]] && cp {fails} "$folder/bin/pytest" || cp {passes} "$folder/bin/pytest" ;;
"pip install") echo "$@" >>{tmp_path}/calls ;;
esac
""")  # fmt: skip
    program("python3", f'mkdir -p "$3/bin" && cp {passes} "$3/bin/pip" && cp {uv} "$3/bin/uv"')
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    for names, status in ((["3.11-oldest"], 0), (["3.11-oldest", "3.13-newest"], 1)):
        done = subprocess.run(
            [SCRIPTS / "test-versions", *names], env=environment, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == status, done.stderr
    head, first, second = (line.split() for line in done.stdout.splitlines())
    assert head[:3] == ["versions", "result", "torch"]
    assert first[:4] == ["3.11-oldest", "passed", "2.11.0", "-"]
    assert second[:3] == ["3.13-newest", "FAILED", "2.11.0"]
    calls = (tmp_path / "calls").read_text().splitlines()
    assert ["lowest-direct" in line for line in calls] == [True, True, False]
    assert all("opencv-python-headless>=4.10.0.84,<5" in line for line in calls)
