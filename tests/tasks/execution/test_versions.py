import shutil

import pytest

from data.errors import ServiceUnavailable
from tasks.execution import versions as module
from tasks.execution.versions import require_versions, versions


def test_the_same_is_taken():
    require_versions(versions(), "this host")


def test_what_differs_is_named_and_nothing_else():
    theirs = versions() | {"numpy": "1.0"}
    message = rf"this host has numpy {versions()['numpy']}, the run has numpy 1\.0: install"
    with pytest.raises(ServiceUnavailable, match=message):
        require_versions(theirs, "this host")


def test_code_is_known_by_its_content(tmp_path, monkeypatch):
    before = versions()
    for name in ("data", "models", "tasks"):
        shutil.copytree(module._ROOT / name, tmp_path / name)
    monkeypatch.setattr(module, "_ROOT", tmp_path)
    assert versions() == before
    with (tmp_path / "tasks" / "kinds" / "synthesize.py").open("a") as file:
        file.write("# changed")
    with pytest.raises(ServiceUnavailable, match="detdiffusion's code"):
        require_versions(before, "this host")
