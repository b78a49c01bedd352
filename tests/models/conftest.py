from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def root(tmp_path_factory, ingested):
    """A folder for trainings in processes of their own, beside the data set."""
    folder = tmp_path_factory.mktemp("trainings")
    (folder / "ingested").symlink_to(ingested)
    return folder


@pytest.fixture(scope="module")
def scripts_of():
    """Lets the scripts of a folder here be imported, in processes that are started too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parent)
        yield lambda folder: patch.syspath_prepend(Path(__file__).with_name(folder))
