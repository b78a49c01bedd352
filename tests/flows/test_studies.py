import pytest

from data.artifacts.digests import DigestMemory
from data.errors import InvalidConfig
from data.layouts.options import POLICIES
from flows.studies import read_study, study_graph
from flows.study_presets import STUDIES
from models.metrics.options import run_and_name
from tasks.pages.numbers import number_name

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
    path.write_text(STUDY, encoding="utf-8-sig")  # with a byte order mark, as of Windows
    return path


def test_runs_share_what_is_the_same_in_them(file):
    study = read_study(str(file))
    assert study.name == "policies"
    assert all(config.train_scorer.num_iterations == 9 for config in study.runs.values())
    graph = study_graph(study, DigestMemory(), {})
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
        ("seeds = ['0']\n[runs.a]", "seeds must be a list of whole numbers"),
        ("[runs.'a/b']", "names of runs have no slash"),
        (
            "[runs.a]\n[[questions]]\nname='q'\ntext='t'\norder=['b: map', 'a: map']",
            "the runs .'b'.",
        ),
        ("[runs.a]\n[[questions]]\nname='q'\ntext='t'\norder=['map', 'a: map']", "RUN: NUMBER"),
        ("[runs.a]\n[[questions]]\nnmae='q'", r"nmae.*: unknown option; did you mean name\?"),
        ("[runs.a]\n[numbers]\nx = 'b: map'", "the runs .'b'."),
        ("best_of = ['b: real_hard']\n[runs.a]", "the runs .'b'."),
        ("best_of = ['a']\n[runs.a]", 'write "RUN: NAME"'),
        ("best_of = ['a: x']\nseeds = [0]\n[runs.a]", "give the seeds as options.retrain.seeds"),
    ],
)
def test_a_file_that_is_no_study_is_one_clear_error(file, text, message):
    file.write_text(text)
    with pytest.raises(InvalidConfig, match=message):
        read_study(str(file))


def test_a_study_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InvalidConfig, match=r"nowhere\.toml"):
        read_study(str(tmp_path / "nowhere.toml"))


def test_seeds_make_each_run_once_more_and_questions_are_a_step_of_its_own(file):
    asked = "\n[[questions]]\nname='q'\ntext='t'\norder=['hard: map_real', 'easy: map_real']\n"
    file.write_text("seeds = [3, 4]\n" + STUDY + asked)
    study = read_study(str(file))
    assert list(study.runs)[:3] == ["easy/3", "easy/4", "hard/3"]
    run = study.runs["hard/4"]
    assert (run.train_generator.seed, run.retrain.seeds, run.train_detector.seed) == (4, (4,), 0)
    graph = study_graph(study, DigestMemory(), {})
    conclusion = graph.find("conclude")
    assert conclusion.inputs["reports/easy/3"] is graph.find("easy/3: report")
    assert conclusion.options.questions[0].sides == (("hard", "map_real"), ("easy", "map_real"))
    assert list(graph)[-1] is conclusion


@pytest.mark.parametrize("name", STUDIES)
def test_studies_with_a_name_ask_for_numbers_that_their_runs_have(name):
    study = read_study(name)
    assert study.name == name
    asked = study.asked
    sides = [side for question in asked.questions for side in question.sides]
    gains = [(run, f"gain_{arm}") for run, arm in map(run_and_name, asked.best_of)]
    for run, number in [*sides, *map(run_and_name, asked.numbers.values()), *gains]:
        own = [config for key, config in study.runs.items() if key.partition("/")[0] == run]
        retrain = own[0].retrain
        prefixes = ("", *(f"{other}_" for other in retrain.others))
        arms = [f"{prefix}{{}}_{number_name(arm)}" for arm in retrain.trained_arms
                for prefix in prefixes]  # fmt: skip
        numbers = {arm.format(what) for arm in arms for what in ("map", "gain")}
        numbers |= {
            f"{what}_{policy}" for what in ("score_ap50", "score_ap75", "recall")
            for policy in (*POLICIES, "real")
        }  # fmt: skip
        assert number in numbers


def test_what_is_given_goes_over_the_options_and_not_over_what_a_run_differs_in(file):
    file.write_text("[options.retrain]\nseeds = [1]\n[runs.a]\n[runs.b.retrain]\nseeds = [2]\n")
    study = read_study(str(file), {"retrain": {"seeds": [3]}, "train_scorer": {"seed": 4}})
    assert [study.runs[name].retrain.seeds for name in "ab"] == [(3,), (2,)]
    assert {run.train_scorer.seed for run in study.runs.values()} == {4}


def test_seeds_that_are_given_go_over_those_of_a_study(file):
    file.write_text("preset = 'smoke'\nseeds = [0]\n[runs.a]\n")
    study = read_study(str(file), {"retrain": {"seeds": [5, 6]}})
    assert {name: run.retrain.seeds for name, run in study.runs.items()} == {
        "a/5": (5,),
        "a/6": (6,),
    }
    assert study.runs["a/6"].train_generator.seed == 6
    with pytest.raises(InvalidConfig, match=r"a run for each seed: give them as retrain\.seeds"):
        read_study(str(file), {"train_generator": {"seed": 1}})
