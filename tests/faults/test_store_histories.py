"""Random histories of a store, with damage and crashes, against a plain model of it."""

import os
import shutil
import subprocess
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from data.artifacts.garbage import collect, garbage
from data.artifacts.identity import StepIdentity
from data.artifacts.inventory import artifacts
from data.artifacts.records import RecordedStep, write_record
from data.artifacts.remote import Remote
from data.artifacts.remote_contents import RemoteContents
from data.artifacts.roots import Keep, pin, unpin
from data.artifacts.store import ArtifactStore
from data.artifacts.verification import damaged_files, remove_damaged
from data.errors import InvalidManifest

OLD = 100
"""Hours."""

AGES = st.sampled_from([1, OLD, -OLD])
"""Hours; what is from tomorrow was made before the clock was set back."""

PLACES = st.integers(0, 2**16)
FAULTS = st.sampled_from(["EIO", "ENOSPC", "death", "torn write"])


def some(items, places):
    """Those of the items that random numbers point to."""
    items = list(items)
    return list(dict.fromkeys(items[place % len(items)] for place in places)) if items else []


def collect_on(url, pins):
    """Leave on a mirror what is pinned and what that is made from; the rest goes for good the next time."""
    contents, keep = RemoteContents(Remote(url)), Keep(0, timedelta(0))
    for reference in pins:
        contents.pin(reference)
    contents.collect(keep, contents.garbage(keep))
    for reference in pins:
        contents.unpin(reference)


class Histories(RuleBasedStateMachine):
    """A store and its mirror beside sets and ages, in hours.

    The mirror is used in processes of their own: its library has threads, which no fork has.

    Attributes:
        made: artifact to its age.
        damaged: of them, those that are no hits.
        unreadable: of those, the ones whose manifest is damaged.
        pushed: what is on the mirror.
    """

    publish, attempt = None, None

    def __init__(self):
        super().__init__()
        self.store = ArtifactStore(Path(tempfile.mkdtemp()))
        self.made, self.inputs, self.runs, self.pins = {}, {}, [], set()
        self.damaged, self.unreadable, self.number = set(), set(), 0
        self.mirror, self.pushed = Path(tempfile.mkdtemp()), set()
        self.record([], "empty", OLD)
        shutil.copytree(self.store.root / "runs", self.mirror / "runs")

    def teardown(self):
        shutil.rmtree(self.store.root)
        shutil.rmtree(self.mirror)

    def record(self, references, name, hours):
        keys = (reference.partition("/") for reference in references)
        steps = tuple(
            RecordedStep(names=("s",), stages=("s",), kind=kind, key=key) for kind, _, key in keys
        )
        started = datetime.now(UTC) - timedelta(hours=hours)
        with patch("data.artifacts.records.datetime", wraps=datetime) as clock:
            clock.now.return_value = started
            return f"runs/{write_record(self.store.root, 'run', name, {}, steps).id}"

    def identity(self, inputs):
        self.number += 1
        sources = {f"input {i}": reference for i, reference in enumerate(inputs)}
        return StepIdentity("kind", {}, {"value": self.number}, {}, sources)

    @rule(places=st.lists(PLACES, max_size=2), hours=AGES, is_pushed=st.booleans())
    def make(self, places, hours, is_pushed):
        inputs = some(self.made, places)
        reference = self.publish(self.store, self.identity(inputs), hours).reference
        self.made[reference], self.inputs[reference] = hours, inputs
        if is_pushed:
            self.push_one(reference)

    @rule(places=st.lists(PLACES, max_size=2), nth=st.integers(1, 25), fault=FAULTS)
    def crash_while_making(self, places, nth, fault):
        inputs = some(self.made, places)
        identity = self.identity(inputs)
        self.attempt(lambda: self.publish(self.store, identity), fault, nth)
        if self.store.lookup(identity.kind, identity.key):
            self.made[identity.reference], self.inputs[identity.reference] = 0, inputs
        else:
            assert identity.reference not in artifacts(self.store.root)

    @precondition(lambda self: len(self.made) > len(self.damaged))
    @rule(place=PLACES, bit=PLACES, how=st.sampled_from(["flip", "cut", "delete"]),
          name=st.sampled_from(["file", "manifest.json"]))  # fmt: skip
    def damage(self, place, bit, how, name):
        (reference,) = some(sorted(self.made.keys() - self.damaged), [place])
        path, before = self.store.root / reference / name, self.store.read(*reference.split("/"))
        content, times = bytearray(path.read_bytes()), (path.stat().st_atime, path.stat().st_mtime)
        if name == "manifest.json":  # of its numbers of time and memory nobody can know
            bit %= 8 * content.index(b'"summary"')
        match how:
            case "flip":
                content[bit // 8 % len(content)] ^= 1 << bit % 8
            case "cut":
                del content[len(content) // 2 :]
        path.write_bytes(content)
        os.utime(path, times)
        if how == "delete":
            path.unlink()
        found = self.store.read(*reference.split("/"))
        if found is None:
            self.unreadable.add(reference)
        if found is None or self.store.damage(found):
            self.damaged.add(reference)
        else:  # white space, or the like
            assert found == before

    @rule()
    def repair(self):
        there = artifacts(self.store.root)
        found = [item for item in there if damaged_files(self.store, item)]
        assert set(remove_damaged(self.store, found)) == self.damaged
        for reference in self.damaged:
            del self.made[reference]
        self.damaged, self.unreadable = set(), set()

    @precondition(lambda self: len(self.made) > len(self.unreadable))
    @rule(place=PLACES)
    def push(self, place):
        self.push_one(*some(sorted(self.made.keys() - self.unreadable), [place]))

    def push_one(self, reference):
        manifest = self.store.read(*reference.split("/"))
        outcome = self.attempt(lambda: Remote(self.mirror.as_uri()).push(self.store, manifest))
        if reference not in self.damaged:
            assert outcome.name == "UNTOUCHED"
            self.pushed.add(reference)
        elif reference in self.pushed:  # what is damaged may be what the manifest says of a file
            assert outcome.name in {"UNTOUCHED", "REFUSED"}
        else:
            assert outcome.name == "REFUSED"

    @precondition(lambda self: self.pushed - (self.made.keys() - self.damaged))
    @rule(place=PLACES, nth=st.integers(0, 25), fault=FAULTS)
    def pull(self, place, nth, fault):
        (reference,) = some(sorted(self.pushed - (self.made.keys() - self.damaged)), [place])
        kind, key = reference.split("/")
        self.attempt(lambda: Remote(self.mirror.as_uri()).pull(self.store, kind, key), fault, nth)
        is_hit = bool(ArtifactStore(self.store.root).lookup(kind, key))
        assert is_hit or nth
        if is_hit:
            self.made[reference] = 0
        elif reference not in artifacts(self.store.root):
            self.made.pop(reference, None)
        if is_hit or reference not in self.made:
            self.damaged.discard(reference)
            self.unreadable.discard(reference)

    @precondition(lambda self: self.made)
    @rule(places=st.lists(PLACES, min_size=1, max_size=3), number=st.integers(0, 1), hours=AGES)
    def run(self, places, number, hours):
        references, name = sorted(some(self.made, places)), f"preset {number}"
        self.runs.append((self.record(references, name, hours), name, references, hours))

    @precondition(lambda self: self.made)
    @rule(place=PLACES)
    def pin(self, place):
        for name in some([*self.made, *(run[0] for run in self.runs)], [place]):
            pin(self.store.root, name)
            self.pins.add(name)

    @rule(place=PLACES)
    def unpin(self, place):
        for name in some(sorted(self.pins), [place]):
            unpin(self.store.root, name)
            self.pins.discard(name)

    @rule(runs=st.integers(0, 2))
    def collect(self, runs):
        keep = Keep(runs=runs)
        if self.unreadable:
            with pytest.raises(InvalidManifest):
                garbage(self.store, keep)
            return
        left = self.left(runs)
        collect(self.store, keep, garbage(self.store, keep))
        self.made = {name: self.made[name] for name in self.made if name in left}
        self.damaged &= left

    @precondition(lambda self: self.pushed)
    @rule(places=st.lists(PLACES, max_size=2))
    def collect_on_the_mirror(self, places):
        wanted = some(sorted(self.pushed), places)
        collected = self.attempt(partial(collect_on, self.mirror.as_uri(), wanted))
        assert collected.name == "UNTOUCHED"
        self.pushed = self.with_inputs(wanted, self.pushed)

    def left(self, keep):
        """What a collection must leave: what is kept one by one, and then everything it is made from."""
        wanted = [reference for reference, hours in self.made.items() if hours < 24]
        counted = {}
        for identifier, name, references, hours in reversed(self.runs):
            finished, others = counted.setdefault(name, ([], []))
            alike = finished if self.made.keys() >= {*references} else others
            if references not in alike and len(finished) < keep and len(alike) < keep:
                alike.append(references)
            if references in alike or identifier in self.pins or hours < 24:
                wanted += references
        return self.with_inputs([*wanted, *self.pins], self.made)

    def with_inputs(self, wanted, there):
        """Those of the artifacts that are there, and of what they are made from."""
        left = set()
        while wanted:
            reference = wanted.pop()
            if reference in there and reference not in left:
                left.add(reference)
                wanted += self.inputs[reference]
        return left

    @invariant()
    def every_artifact_is_there_and_intact_or_no_hit(self):
        assert set(artifacts(self.store.root)) == self.made.keys()
        store = ArtifactStore(self.store.root)
        hits = {name for name in self.made if store.lookup(*name.split("/"))}
        assert hits == self.made.keys() - self.damaged
        there = {
            str(path.parent.relative_to(self.mirror)) for path in self.mirror.glob("*/*/*.json")
        }
        assert there == self.pushed


def histories(publish, attempt):
    class Here(Histories):
        pass

    Here.publish, Here.attempt = staticmethod(publish), staticmethod(attempt)
    run_state_machine_as_test(Here, settings=settings(max_examples=12, stateful_step_count=40))


def test_random_histories_leave_what_a_plain_model_leaves():
    """In an interpreter of its own: what other tests have opened of the mirror's library outlives no fork."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-o", "python_functions=histories", __file__],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
