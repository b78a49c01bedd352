import itertools
import json
import re
import runpy
import shlex
import shutil
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest
import typer
import yaml
from markdown_it import MarkdownIt
from prefect.utilities.schema_tools.validation import validate
from typer.testing import CliRunner

from data.artifacts.digests import DigestMemory
from data.artifacts.store import ArtifactStore
from flows import cost_command, stages
from flows.command_line import app
from flows.command_options import configured_run
from flows.request import Request
from flows.run_config import build_run
from flows.run_graph import STAGES
from flows.studies import read_study
from models.counts import known_counts
from tasks.estimates.cost import ASSUMED_CORE

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
MARKDOWN = MarkdownIt("commonmark").enable("table")
STANDS_FOR_OTHERS = re.compile("[A-Z]+$|…")


def tokens(document):
    """All tokens of a document, those inside of lines too."""
    for token in MARKDOWN.parse(document.read_text()):
        yield from [token, *(token.children or [])]


def anchors(document):
    """The anchors of a document's headings, as GitHub names them."""
    found = []
    for heading, inline in pairwise(MARKDOWN.parse(document.read_text())):
        if heading.type == "heading_open":
            text = "".join(item.content for item in inline.children)
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            found.append(f"{slug}-{found.count(slug)}" if slug in found else slug)
    return found


def targets(document):
    """What a document links to and shows, without other sites' pages."""
    for token in tokens(document):
        target = token.attrGet("href") or token.attrGet("src")
        if target and "://" not in target:
            yield target


def commands(document, program="detdiffusion"):
    """The command lines of a program in a document's blocks, as lists of arguments."""
    for token in tokens(document):
        lines = token.content.splitlines() if token.type == "fence" else []
        for words in (shlex.split(line, comments=True) for line in lines):
            if words and words[0].rpartition("/")[2] == program:
                yield words[1:]


def own_commands(document):
    """Ours in blocks, and in the text those with arguments, but for what stands for others: `KEY`, `…`."""
    yield from commands(document)
    for token in tokens(document):
        name, *words = token.content.split() if token.type == "code_inline" else [""]
        if name == "detdiffusion" and words[1:] and not any(map(STANDS_FOR_OTHERS.match, words)):
            yield words


def started_deployments(document):
    """Likewise of `prefect deployment run`."""
    for words in commands(document, "prefect"):
        if words[:2] == ["deployment", "run"]:
            yield words


def prefect_files(document):
    """The files that `prefect` is given."""
    for words in commands(document, "prefect"):
        for option, value in pairwise(words):
            if option == "--base-job-template":
                yield value


LONG = "trains for minutes to days; "
ELSEWHERE = {
    "detdiffusion run smoke": "tests/flows/test_end_to_end.py, on Scenes",
    "detdiffusion run": LONG + "the suite runs smoke, which has the same steps",
    "detdiffusion study": LONG + "tests/flows/test_end_to_end.py has some of runs of smoke",
    "detdiffusion plateau": LONG + "tests/flows/test_plateau.py has its parts",
    "detdiffusion plan coco-512 --memory": "takes a minute; tests/models/training/test_memory_table.py",
    "detdiffusion plan coco-512 --config": "tests/flows/test_coco_commands.py, on files like COCO's",
    "detdiffusion plan fine-tune --config": "tests/flows/test_coco_commands.py, with a base model",
    "make setup": "the gate begins with it",
    "make demo": "takes minutes; the suite runs smoke, which has the same steps",
    "make test": "is this suite",
    "make check": "the gate, .ci/run, runs it before the suite",
    "make up": "tests/test_scripts.py, as scripts/up",
    "make down": "tests/test_scripts.py, as scripts/down",
    "pre-commit install": "changes the checkout; its hooks are those of `make check`",
    "python scripts/gpu-check": "tests/test_scripts.py, with --tiny",
    "export": "sets variables",
    ". .venv/bin/activate": "sets the shell's path; the suite runs in that environment",
    "prefect work-pool create": "needs a server that stays; a test looks whether its template is there",
    "prefect worker start": "needs a server that stays",
    "prefect --no-prompt deploy": "needs a server that stays; make up deploys the same file",
    "docker build": "needs Docker",
    "pip install": "needs the network",
    "pytest": "is a part of this suite, with more of its tests",
}
"""Beginnings of commands that are not run here, and where they are, or why nowhere."""

OURS = {shlex.join(["detdiffusion", *x]) for document in DOCUMENTS for x in own_commands(document)}


def is_elsewhere(text):
    return text.startswith(tuple(ELSEWHERE))


def other_commands(document):
    """The command lines of other programs, from the program on; without `prefect deployment run`."""
    for token in tokens(document):
        if token.type != "fence" or token.info:
            continue
        for line in token.content.splitlines():
            words = itertools.dropwhile(
                lambda word: word == "env" or re.match(r"[A-Z_]+=", word),
                shlex.split(line, comments=True),
            )
            text = " ".join(words)
            if text and not text.startswith(("detdiffusion", "prefect deployment run")):
                yield text


def settings(document):
    """The TOML of a document's blocks."""
    for token in tokens(document):
        if token.type == "fence" and token.info == "toml":
            yield token.content


def cases(found):
    """What is found in each document, as a test's parameters."""
    return [
        pytest.param(
            item, id=f"{path.name}: {item if isinstance(item, str) else ' '.join(item)}"[:80]
        )
        for path in DOCUMENTS
        for item in found(path)
    ]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files_and_headings(document):
    for target in targets(document):
        path, _, anchor = target.partition("#")
        linked = (document.parent / path).resolve() if path else document
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


@pytest.mark.parametrize("words", cases(own_commands))
def test_commands_parse_and_their_options_exist(words):
    name, *arguments = words
    given = typer.main.get_command(app).commands[name].make_context(name, arguments).params
    assert given.get("stage") in {None, *STAGES}
    if name == "study" and not given["source"].endswith(".toml"):
        read_study(given["source"])
    elif "preset" in given and not given.get("study_source"):
        configured_run(given["preset"], given["assignments"], None)


def test_every_other_command_is_run_elsewhere_or_there_is_a_reason():
    found = [text for document in DOCUMENTS for text in other_commands(document)]
    assert [text for text in found if not is_elsewhere(text)] == []
    used = {
        max(filter(text.startswith, ELSEWHERE), key=len, default="") for text in {*found, *OURS}
    }
    assert ELSEWHERE.keys() - used == set()


@pytest.fixture(scope="module")
def desk(tmp_path_factory, dataset, publish, publish_tables):
    """A folder with the files that our commands name, and a store with a data set and reports."""
    folder = tmp_path_factory.mktemp("desk")
    for path, split in (
        ("my/instances.json", "train"),
        ("bccd/instances_train.json", "train"),
        ("bccd/instances_val.json", "val"),
    ):
        images = (folder / path).parent / "images"
        shutil.copytree(dataset.image_folder(split), images, dirs_exist_ok=True)
        shutil.copy(dataset.instances_file(split), folder / path)
    blocks = [*settings(ROOT / "docs/operating.md")]
    (folder / "study.toml").write_text(next(text for text in blocks if "[runs." in text))
    own = tomllib.loads(next(settings(ROOT / "docs/micrographs.md")))
    (folder / "mirror").mkdir()
    store = ArtifactStore(folder / "artifacts")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        studies = [read_study("study.toml"), read_study("pays-bccd", own)]
        demo = Request("run", "demo", build_run("demo", {}))
        publish_tables(store, demo.graph(DigestMemory()), dataset.folder)
        for request in (demo, *(Request("study", study.name, study) for study in studies)):
            graph = request.graph(DigestMemory())
            request.record(store, graph)
            for step in graph:
                name, key = step.kind.name, step.identity.key
                if name in {"report", "conclude"} and not store.has(name, key):
                    publish(store, step.identity)
    return folder


@pytest.mark.parametrize("text", sorted(text for text in OURS if not is_elsewhere(text)))
def test_our_commands_run(text, desk, monkeypatch):
    monkeypatch.chdir(desk)
    monkeypatch.delenv("DETDIFFUSION_HOME", raising=False)
    monkeypatch.setenv("DETDIFFUSION_REMOTE", (desk / "mirror").as_uri())
    speed = cost_command._Measured(known_counts(), ASSUMED_CORE)  # measured for seconds otherwise
    monkeypatch.setattr(cost_command, "_measured", lambda models: speed)
    found = CliRunner().invoke(app, shlex.split(text)[1:])
    assert found.exit_code == 0, found.exception or found.output
    assert found.stdout


@pytest.mark.parametrize("path", cases(prefect_files))
def test_files_that_prefect_is_given_exist(path):
    assert (ROOT / path).is_file()


@pytest.mark.parametrize("words", cases(started_deployments))
def test_deployments_that_are_started_exist_and_take_their_parameters(words):
    flows = {}
    for item in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]:
        flow = getattr(stages, item["entrypoint"].rpartition(".")[2])
        flows[f"{flow.name}/{item['name']}"] = flow
    flow = flows[words[2]]
    for option, text in zip(words[3::2], words[4::2], strict=True):
        assert option == "--param"
        name, _, value = text.partition("=")
        validate({name: json.loads(value)}, flow.parameters.model_dump(), raise_on_error=True)
        flow.validate_parameters({"num_cores": None, name: json.loads(value)})


@pytest.mark.parametrize("text", cases(settings))
def test_settings_are_options(text, tmp_path):
    document = tomllib.loads(text)
    if "runs" not in document:
        build_run("coco-256", document)
        return
    (tmp_path / "study.toml").write_text(text)
    read_study(str(tmp_path / "study.toml"))


def test_the_options_page_is_what_the_models_say():
    written = runpy.run_path(str(ROOT / "scripts" / "write-options"))
    assert written["PAGE"].read_text() == written["page"](), "run scripts/write-options"
