"""In what artifacts differ, which is nearest, and what came first."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from data.artifacts.comparison import Lineage, artifact_differences, own_changes, run_differences
from data.artifacts.identity import StepIdentity
from data.artifacts.records import RecordedStep, write_record
from data.artifacts.store import ArtifactStore


def identity(kind, inputs=(), **options):
    sources = {f"input {i}": reference for i, reference in enumerate(inputs)}
    return StepIdentity(kind, {"step": 1}, options, {}, sources)


def lineage(*identities):
    return Lineage({item.reference: item for item in identities}.get)


def test_a_difference_is_told_by_what_changed():
    old = StepIdentity(
        "k",
        {"step": 1, "detector": 3},
        {"a": 1, "b": {"c": 2}},
        {"train": "0123456789abcdef"},
        {"same name": "k/1", "old": "k/3"},
    )
    new = StepIdentity(
        "k",
        {"step": 1, "detector": 4},
        {"a": 1, "b": {"c": 3}},
        {"train": "fe"},
        {"same name": "k/2"},
    )
    assert [str(change) for change in own_changes(old, new)] == [
        "version of detector 3 → 4",
        "b.c: 2 → 3",
        "content of train: 0123456789ab → fe",
        "input old: k/3 → none",
    ]
    other = StepIdentity("other", {}, {}, {}, {})
    assert [str(change) for change in own_changes(old, other)] == ["kind: k → other"]


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1))
def test_the_first_causes_are_the_steps_that_were_changed_and_no_others(seed):
    """Of two random graphs that differ in the options of a few steps."""
    rng = np.random.default_rng(seed)
    size = int(rng.integers(2, 12))
    changed = set(rng.choice(size, int(rng.integers(0, 3))).tolist())
    inputs = [
        sorted({*rng.integers(node, size=3).tolist()}) if node else [] for node in range(size)
    ]
    inputs[-1] = list(range(size - 1))

    def graph(*, new):
        steps = []
        for node in range(size):
            value = {"value": int(new and node in changed)}
            steps.append(identity(f"k{node}", [steps[i].reference for i in inputs[node]], **value))
        return steps

    old, new = graph(new=False), graph(new=True)
    found = lineage(*old, *new).causes(old[-1].reference, new[-1].reference)
    assert {pair[1] for pair in found} == {new[node].reference for node in changed}
    assert all([str(c) for c in changes] == ["value: 0 → 1"] for changes in found.values())


def test_what_is_no_longer_there_is_named():
    gone, new = identity("base", a=1), identity("base", a=2)
    old_top, new_top = identity("top", [gone.reference]), identity("top", [new.reference])
    causes = lineage(new, old_top, new_top).causes(old_top.reference, new_top.reference)
    (change,) = causes[gone.reference, new.reference]
    assert str(change) == f"{gone.reference} is not in the store"


def test_the_nearest_differs_least_itself_then_in_what_it_was_made_from_then_is_the_newest(
    publish, tmp_path
):
    store = ArtifactStore(tmp_path)
    bases = [publish(store, identity("base", a=a, b=b)) for a, b in ((1, 1), (1, 2), (3, 3))]

    def top(base, hours, **options):
        return publish(store, identity("top", [base.reference], **options), hours)

    wanted_base = identity("base", a=1, b=9)
    wanted = identity("top", [wanted_base.reference], x=1)
    far, older, newer, newest = (
        top(bases[2], 1, x=1), top(bases[0], 3, x=1), top(bases[1], 2, x=1), top(bases[0], 0, x=2),
    )  # fmt: skip
    known = lineage(wanted_base, wanted, *(m.identity for m in [*bases, far, older, newer, newest]))
    assert known.nearest(wanted.reference, [far, older, newer, newest]) is newer
    assert known.nearest(wanted.reference, [far, older, newest]) is older
    assert known.nearest(wanted.reference, [far, newest]) is far
    assert known.nearest(wanted.reference, []) is None


def test_artifacts_and_runs_are_compared_by_topic(publish, tmp_path):
    store = ArtifactStore(tmp_path)
    bases = [publish(store, identity("base", a=a)) for a in (1, 2)]
    tops = [
        publish(store, identity("top", [base.reference]), content=content)
        for base, content in zip(bases, ("one", "four"), strict=True)
    ]
    manifests = {manifest.reference: manifest for manifest in [*bases, *tops]}
    known = lineage(*(manifest.identity for manifest in manifests.values()))
    references = tuple(manifest.reference for manifest in tops)
    digests = tuple(manifest.files["file"].sha256 for manifest in tops)
    found = artifact_differences(known, *tops)
    assert found == {
        "inputs": {"input 0": tuple(manifest.reference for manifest in bases)},
        "causes": {f"{bases[1].reference}: option a": (1, 2)},
        "files": {"file": digests},
        "numbers": {"results.size": (3, 4)},
    }
    assert artifact_differences(known, tops[0], tops[0]) == {}

    def run(number):
        steps = tuple(
            RecordedStep(names=(name,), stages=("s",), kind=manifest.kind, key=manifest.key)
            for name, manifest in (("the base", bases[number]), ("the top", tops[number]))
        )
        return write_record(tmp_path, "run", "demo", {"base": {"a": number + 1}}, steps)

    runs = [run(0), run(1), run(1)]
    found = run_differences(manifests.get, known, *runs[:2])
    assert found["options"] == {"base.a": (1, 2)}
    assert found["steps"]["the top"] == references
    assert found["causes"] == {"the base: option a": (1, 2)}
    assert found["files"] == {"the top: file": digests}
    assert run_differences(manifests.get, known, *runs[1:]) == {}
