"""Keys: what is part of them, and what is not."""

from typing import Annotated

from hypothesis import given
from hypothesis import strategies as st

from data.artifacts.identity import StepIdentity
from data.artifacts.options import AddedLater, Options, RuntimeOnly


class Inner(Options):
    size: int = 1
    workers: Annotated[int, RuntimeOnly] = 1
    path: str = "a"


class Outer(Options):
    inner: Inner = Inner()
    name: str = "a"


class Grown(Outer):
    """The same with an option that came later."""

    smooth: Annotated[bool, AddedLater] = False


def test_runtime_options_are_not_part_of_the_key():
    assert Outer(inner=Inner(workers=9)).keyed() == Outer().keyed()
    assert Outer(inner=Inner(size=9)).keyed() != Outer().keyed()


def test_a_new_option_leaves_old_artifacts_as_they_are_until_it_is_used():
    assert Grown().keyed() == Outer().keyed()
    assert Grown(smooth=True).keyed() == {**Outer().keyed(), "smooth": True}


def test_what_is_known_by_content_leaves_its_spelling_out():
    without = {"inner.path": "digest"}
    first, second = Outer(inner=Inner(path="x/y")), Outer(inner=Inner(path="./x/y"))
    assert first.keyed(without) == second.keyed(without)
    assert first.keyed(without)["inner"] == {"size": 1}


@given(st.dictionaries(st.text(), st.integers() | st.text(), max_size=4))
def test_the_key_does_not_depend_on_the_order_of_options(options):
    backwards = dict(reversed(options.items()))
    first = StepIdentity("k", {"step": 1}, options, {}, {})
    assert first.key == StepIdentity("k", {"step": 1}, backwards, {}, {}).key
    assert first.key != StepIdentity("k", {"step": 2}, options, {}, {}).key
    assert first.key != StepIdentity("k", {"step": 1}, options, {"x": "1"}, {}).key
    assert first.key != StepIdentity("k", {"step": 1}, options, {}, {"x": "1"}).key
