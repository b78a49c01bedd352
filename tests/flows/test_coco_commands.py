"""The documents' commands for COCO, and for data of a user's, on files like COCO's."""

import importlib.util
import json
import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from data.artifacts.digests import DigestMemory
from data.artifacts.store import ArtifactStore
from data.ingest.ingestion import ingest
from flows.command_line import app
from flows.run_config import build_run
from flows.run_graph import run_graph
from tasks.estimates.forecast import Forecast

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(
    r"^detdiffusion (?:run|plan) ((?:coco-256|coco-512|fine-tune) .*--config \S+[^#\n]*)",
    re.MULTILINE,
)
COMMANDS = sorted({found for page in PAGES for found in COMMAND.findall(page.read_text())})
NUM_STUFF = 91


def settings():
    """What the guide says of COCO's files."""
    blocks = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "guide.md").read_text(), re.DOTALL)
    return next(text for text in blocks if "stuff_train2017" in text)


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """A folder with files like COCO's, made by the benchmarks' generator, where the guide has them."""
    spec = importlib.util.spec_from_file_location(
        "coco_files", ROOT / "benchmarks" / "coco_files.py"
    )
    coco_files = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = coco_files
    spec.loader.exec_module(coco_files)
    folder = tmp_path_factory.mktemp("coco")
    given = tomllib.loads(settings())["ingest"]
    for split, num_images in (("train", 60), ("val", 40)):
        instances, images = (folder / given[split][name] for name in ("instances", "images"))
        images.mkdir(parents=True)
        instances.parent.mkdir(exist_ok=True)
        coco_files.write_instances(instances, num_images, 7 * num_images)
        document = json.loads(instances.read_text())
        for row in document["images"]:
            Image.new("RGB", (row["width"], row["height"])).save(images / row["file_name"])
        stuff = [{"id": 92 + k, "name": f"stuff {k}"} for k in range(NUM_STUFF)]
        of_stuff = document["annotations"][::5]
        for row in of_stuff:
            row["category_id"] = 92 + row["id"] % NUM_STUFF
        document |= {"categories": stuff, "annotations": of_stuff}
        (folder / given[split]["stuff"]).write_text(json.dumps(document))
    (folder / "my.toml").write_text(settings())
    (folder / "coco.toml").write_text(settings())
    return folder


@pytest.fixture(scope="module")
def tables(coco, tmp_path_factory):
    """The same, ingested."""
    out = tmp_path_factory.mktemp("tables") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(coco)
        ingest(build_run("coco-512", tomllib.loads(settings())).ingest, out)
    return out


def test_the_documents_have_such_commands():
    assert {text.split()[0] for text in COMMANDS} == {"coco-512", "fine-tune"}
    assert len(COMMANDS) >= 4


@pytest.mark.parametrize("command", [*COMMANDS, "coco-256 --config coco.toml"])
def test_commands_are_planned_without_a_warning(
    command, coco, tables, tmp_path, base_folder, publish_tables, caplog, monkeypatch
):
    """With `plan` in place of `run`, and a base model."""
    monkeypatch.chdir(coco)
    preset, *arguments = shlex.split(command)
    base = {"train_generator": {"base_model": str(base_folder)}}
    graph = run_graph(build_run(preset, tomllib.loads(settings()) | base), DigestMemory())
    store = ArtifactStore(tmp_path / "store")
    publish_tables(store, graph, tables)
    monkeypatch.setenv("DETDIFFUSION_HOME", str(store.root))
    monkeypatch.setattr(Forecast, "shortages", lambda *_: [])  # of the machine of this test
    arguments += ["--set", f"train_generator.base_model={base_folder}"]
    found = CliRunner().invoke(app, ["plan", preset, *arguments])
    assert found.exit_code == 0, found.output
    assert re.search(r"│ ingest +│ hit ", found.stdout)
    said = [line for line in found.stderr.splitlines() if not line.startswith("to be downloaded")]
    assert said == [] == [record.message for record in caplog.records]
