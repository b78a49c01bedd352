import pytest

from data.artifacts.digests import DigestMemory
from data.errors import InvalidConfig
from flows.studies import read_study, study_graph

STUDY = """
preset = "smoke"

[options.train_scorer]
num_iterations = 9

[runs.easy.retrain]
arms = ["real", "real+easy"]

[runs.hard.retrain]
arms = ["real", "real+hard"]

[runs.without.train_generator]
perception_weight = 0
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "policies.toml"
    path.write_text(STUDY)
    return path


def test_runs_share_what_is_the_same_in_them(file):
    study = read_study(file)
    assert study.name == "policies"
    assert all(config.train_scorer.num_iterations == 9 for config in study.runs.values())
    graph = study_graph(study, DigestMemory())
    assert graph.find("easy: train generator") is graph.find("hard: train generator")
    assert graph.find("easy: train generator") is not graph.find("without: train generator")
    trained = [step for step in graph if step.kind.name == "train-generator"]
    assert [step.names for step in trained] == [
        ("easy: train generator", "hard: train generator"), ("without: train generator",),
    ]  # fmt: skip
    assert len([step for step in graph if step.kind.name == "report"]) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x", "policies.toml: Expected"),
        ("preset = 'smoke'", "it needs tables runs.NAME"),
        ("nope = 1\n[runs.a]", "unknown: .'nope'."),
        ("preset = 'nope'\n[runs.a]", "run a: unknown preset 'nope'"),
        ("preset = 'smoke'\n[runs.a.retrain]\nseeds = []", "run a: .*retrain.seeds"),
        ("[runs]\na = 1", "runs.a must be tables"),
        ("name = ''\n[runs.a]", "name and preset must be texts"),
        ("preset = ['smoke']\n[runs.a]", "name and preset must be texts"),
        ("[runs.a]\npreset = 'smoke'", "preset stands at the top"),
        ("[options]\npreset = 'smoke'\n[runs.a]", "preset stands at the top"),
    ],
)
def test_a_file_that_is_no_study_is_one_clear_error(file, text, message):
    file.write_text(text)
    with pytest.raises(InvalidConfig, match=message):
        read_study(file)


def test_a_study_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InvalidConfig, match=r"nowhere\.toml"):
        read_study(tmp_path / "nowhere.toml")
