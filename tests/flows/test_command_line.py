import io
import json
import os
import shutil
import subprocess
import sys
import time
import venv
from importlib.metadata import version
from pathlib import Path

import psutil
import pytest
import typer

from data.artifacts.digests import DigestMemory
from data.artifacts.store import ArtifactStore
from data.progress import silent
from flows.command_line import main
from flows.command_options import print_table
from flows.run_config import build_run
from flows.run_graph import run_graph
from tasks.execution.workshop import Workshop

ROOT = Path(__file__).parents[2]


@pytest.fixture
def cli(monkeypatch, capsys, tmp_path):
    """Run the command line; returns exit status, standard output and standard error."""
    monkeypatch.setenv("DETDIFFUSION_HOME", str(tmp_path / "root"))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["detdiffusion", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return stop.value.code, captured.out, captured.err

    return run


def test_plan_of_an_empty_root_is_all_misses(cli):
    status, out, _ = cli("plan", "smoke")
    assert status == 0
    assert out.count("never made") == out.count(" miss ") == 28


def test_a_plan_ends_with_what_it_takes_and_warns_of_too_little_disk(cli, monkeypatch):
    status, out, err = cli("plan", "smoke")
    assert (status, err) == (0, "")
    assert out.splitlines()[-1].startswith("28 steps to be made, roughly: ")
    full = shutil.disk_usage("/")._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    status, _, err = cli("plan", "smoke")
    assert status == 0
    assert "warning: what is to be made takes about " in err


def test_cost_says_of_every_step_what_it_takes(cli):
    status, out, _ = cli("cost", "coco-256", "--gpus", "4", "--json")
    found = json.loads(out)
    assert status == 0
    assert {"step", "flops", "1 H100", "4 H100", "in the store"} <= found["total"].keys()
    hours = {row["step"]: row["GPU-hours"] for row in found["steps"]}
    assert hours["train generator"] > hours["train detector"] > hours["detect val"] > 0


def test_a_plan_warns_of_options_without_effect(cli):
    status, out, err = cli("plan", "smoke", "--set", "pseudo_labels.score_threshold=0.6")
    assert (status, "never made" in out) == (0, True)
    assert err.startswith("warning: pseudo_labels has no effect without the arm self-training or ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "nope"), "unknown preset 'nope': choose one of smoke, demo"),
        (("run", "smoke", "--set", "train_generator.nope=1"), "train_generator.nope"),
        (("run", "smoke", "--set", "nonsense"), "write KEY=VALUE"),
        (("run", "smoke", "--set", "train_generator.num_steps=-1"), "greater than or equal to 0"),
        (("run", "smoke", "--stage", "nope"), "unknown stage 'nope': choose one of ingest"),
        (("run", "smoke", "--stage", "train_generator"), "did you mean train-generator?"),
        (("run", "smoke", "--stage", "retrain"), "run the stage ingest first, or end-to-end"),
        (("plan", "smoke", "--set", "train_generator.max_grad_norm=Infinity"), "a finite number"),
        (("plan", "smoke", "--set", "preset=demo"), "preset = 'demo' among the options of smoke"),
        (("run", "smoke", "--config", "missing.toml"), "--config missing.toml: No such file"),
        (("run", "smoke", "--set", "ingest.train.instances=/no/such.json"), "ingest.train.images"),
        (
            ("plan", "coco-256", "--set", 'ingest.train={"instances":"/no","images":"/no"}'),
            "ingest.val",
        ),
        (("report",), "no finished run under"),
        (("run", "smoke", "--set", "train_generator.base_model=/nope"), "neither a folder nor"),
        (("plan", "coco-512"), "needs your data"),
        (("study", "missing.toml"), "study missing.toml"),
        (("plan", "--study", "missing.toml"), "study missing.toml"),
        (("inspect",), "no ingested data set under"),
        (("inspect", __file__), "needs --images"),
        (("inspect", "/no/such"), "neither a COCO JSON file nor a folder that ingest wrote"),
    ],
)
def test_a_mistake_is_one_line_and_status_1(cli, tmp_path, arguments, message):
    status, out, err = cli(*arguments)
    assert status == 1
    assert message in err
    assert err.count("\n") == 1
    assert out == ""
    assert not (tmp_path / "root").exists()


def test_help_and_plans_wait_for_no_library_of_numbers_tables_or_flows(tmp_path):
    script = (
        "import sys, flows.command_line as line\n"
        "sys.argv = ['detdiffusion', 'plan', 'demo']\n"
        "try: line.main()\n"
        "except SystemExit: pass\n"
        "print([m for m in ('numpy', 'pyarrow', 'torch', 'prefect') if m in sys.modules])"
    )
    environment = os.environ | {"DETDIFFUSION_HOME": str(tmp_path / "root")}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.endswith("\n[]\n")


def test_options_come_from_a_file_and_then_from_the_line(cli, tmp_path):
    file = tmp_path / "run.toml"
    file.write_text("[train_generator]\nnum_steps = -1\n", encoding="utf-8-sig")  # as of Windows
    status, _, err = cli("plan", "demo", "--config", str(file))
    assert status == 1
    assert "got -1" in err
    status, _, _ = cli(
        "plan", "demo", "--config", str(file), "--set", "train_generator.num_steps=3"
    )
    assert status == 0
    status, _, err = cli("plan", "smoke", "--config", str(file))
    assert status == 0
    assert err.startswith("smoke keeps its own train_generator.num_steps: --set changes them\n")


def test_an_unwritable_root_is_one_line(cli, tmp_path):
    (tmp_path / "root").write_text("a file")
    status, _, err = cli("run", "smoke")
    assert status == 1
    assert "DETDIFFUSION_HOME" in err.splitlines()[-1]


def test_hits_can_be_had_where_nothing_can_be_written(cli, tmp_path, caplog):
    store = ArtifactStore(tmp_path / "root")
    graph = run_graph(build_run("smoke", {}), DigestMemory())
    Workshop(store, graph, 1).obtain(graph.find("ingest"), silent)
    (store.root / "runs").write_text("no folder can be made here")
    status, out, _ = cli("run", "smoke", "--stage", "ingest")
    assert (status, out.splitlines()[0]) == (0, "Every step is a hit; nothing to run.")
    assert "no record of this run is left: cannot read or write artifacts under" in caplog.text


def test_a_server_that_does_not_answer_is_one_line(cli, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    status, _, err = cli("run", "smoke")
    assert status == 1
    assert "make up" in err
    assert err.count("\n") == 1


def test_sigterm_ends_all_that_was_started(tmp_path):
    """The stage, its processes, and Prefect's temporary server."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")} | {
        "DETDIFFUSION_HOME": str(tmp_path / "root"),
        "PREFECT_HOME": str(tmp_path / "prefect"),
    }
    command = [Path(sys.executable).with_name("detdiffusion"), "run", "smoke"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 150
        while not (tmp_path / "root/.work/train-detector").exists() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        started = psutil.Process(process.pid).children(recursive=True)
        assert len(started) > 1
        process.terminate()
        assert process.wait(60) == 143
    _, alive = psutil.wait_procs(started, timeout=20)
    assert not alive


def test_inspect_writes_the_page_of_an_ingested_folder(cli, dataset, tmp_path):
    page = tmp_path / "page.html"
    status, out, _ = cli("inspect", str(dataset.folder), "-o", str(page))
    assert (status, out.strip()) == (0, str(page))
    assert page.read_text().count("data:image/png") == 2


def test_a_page_goes_into_a_new_folder_or_is_said_not_to(cli, dataset, tmp_path):
    page = tmp_path / "new/page.html"
    assert cli("inspect", str(dataset.folder), "-o", str(page))[0] == 0
    assert page.is_file()
    status, _, err = cli("inspect", str(dataset.folder), "-o", str(page / "page.html"))
    assert status == 1
    assert err.startswith(f"error: --output {page}/page.html cannot be written: ")


def test_the_version_is_the_packages(cli):
    assert cli("--version") == (0, f"{version('detdiffusion')}\n", "")


@pytest.mark.parametrize(
    ("words", "completed"), [("detdiffusion ins", "inspect"), ("detdiffusion plan dem", "demo")]
)
def test_a_shell_completes_commands_and_presets(words, completed):
    asked = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    environment = {**os.environ, **asked, "_DETDIFFUSION_COMPLETE": "complete_bash"}
    command = Path(sys.executable).with_name("detdiffusion")
    output = subprocess.check_output([command], env=environment, text=True)
    assert output.split() == [completed]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The command of a wheel of a tagged commit, installed beside the libraries of this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("data", "models", "tasks", "flows"):
        shutil.copytree(ROOT / name, folder / "source" / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    git = ["git", "-C", folder / "source", "-c", "user.name=a", "-c", "user.email=b"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"], ["tag", "v3.14.0"]):
        subprocess.run([*git, *words], check=True)
    pip = [sys.executable, "-m", "pip", "--quiet"]
    offline = ["--no-deps", "--no-index"]
    build = [*pip, "wheel", *offline, "--no-build-isolation", "-w", folder, folder / "source"]
    subprocess.run(build, check=True, cwd=folder)
    venv.create(folder / "venv")
    (wheel,) = folder.glob("*.whl")
    python = folder / "venv/bin/python"
    subprocess.run([*pip, "--python", python, "install", *offline, wheel], check=True, cwd=folder)
    (site,) = folder.glob("venv/lib/python*/site-packages")
    (site / "libraries.pth").write_text(str(Path(typer.__file__).parents[1]))
    return folder / "venv/bin/detdiffusion"


@pytest.mark.parametrize("names", [(), ("data/__init__.py", "models/__init__.py", "tasks.py")])
def test_a_wheel_works_in_any_folder(installed, tmp_path, names):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("raise SystemExit('not the package')")

    def output(*arguments):
        command = [installed, *arguments]
        return subprocess.check_output(command, cwd=tmp_path, env=environment, text=True)

    assert output("--version") == "3.14.0\n"
    assert output("plan", "smoke").count("never made") == 28
    site = installed.parents[1].glob("lib/python*/site-packages/*/py.typed")
    assert {path.parent.name for path in site} == {"data", "models", "tasks", "flows"}


@pytest.mark.parametrize(("width", "shows_all"), [(80, False), (200, True)])
def test_no_terminal_cuts_off_what_people_copy(monkeypatch, width, shows_all):
    from rich.console import Console
    from rich.table import Table

    console = Console(width=width, record=True, quiet=False, file=io.StringIO())
    monkeypatch.setattr("flows.command_options.Console", lambda **_: console)
    table = Table("run", "stage", "why", "artifact")
    run, long = "20261128T045047.196550-4507dd28", "x" * 90
    table.add_row(run, "every", long, "train-generator/7df8233a")
    print_table(table)
    text = console.export_text()
    assert run in text
    assert "train-generator/7df8233a" in text
    assert ("every" in text) == shows_all
    assert text.count("x") == 90
