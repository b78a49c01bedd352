"""The mirror, on a real S3 server behind a proxy that fails as networks do, and on a folder."""

import json
import os
import random
import shutil
import threading
import time
import traceback
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta

import pytest

from data.artifacts.bucket import CONTENDERS
from data.artifacts.identity import StepIdentity
from data.artifacts.records import RecordedStep, read_records, write_record
from data.artifacts.remote import Remote
from data.artifacts.store import ArtifactStore
from data.errors import (
    ArtifactMissing,
    InvalidConfig,
    InvalidRecord,
    RemoteConflict,
    RemoteDamaged,
    ServiceUnavailable,
    StorageError,
)

NAMES = ("file", "sub/a b#1%20é.txt", "empty")
LONG = 78_000 * 256
"""Bytes of a file that is sent in three parts."""


def publish(store, content="content", made="2026-01-01", size=0, **options):
    identity = StepIdentity("kind", {"step": 1}, options, {}, {})
    out = store.work(identity.kind, identity.key) / "out"
    (out / "sub").mkdir(parents=True)
    for name in NAMES:
        (out / name).write_text("" if name == "empty" else f"{name} {content}")
    if size:
        (out / "long").write_bytes(bytes(range(256)) * (size // 256))
    return store.publish(
        identity, out, summary={}, environment={}, seconds=1.0, peak_memory_bytes=1, created_at=made
    )  # fmt: skip


@pytest.fixture
def machines(tmp_path):
    """The stores of two machines."""
    return ArtifactStore(tmp_path / "one"), ArtifactStore(tmp_path / "two")


@pytest.fixture
def new_remote(s3):
    """Opens a mirror of this test's own as another process would."""
    url = f"s3://test/{uuid.uuid4().hex}/pre fix"
    return lambda: Remote(url)


@pytest.fixture
def folder(tmp_path):
    """A mirror in a folder."""
    (tmp_path / "mirror").mkdir()
    return Remote((tmp_path / "mirror").as_uri())


def contents(store, manifest):
    return {
        str(path.relative_to(store.root)): path.read_bytes()
        for path in (store.root / manifest.reference).rglob("*")
        if path.is_file()
    }


def in_five_tries(do):
    """As people do."""
    for _ in range(4):
        with suppress(ServiceUnavailable):
            return do()
    return do()


def test_what_one_machine_pushes_another_pulls_as_it_was(machines, new_remote, s3):
    one, two = machines
    manifest = publish(one, size=LONG)
    assert new_remote().pull(two, "kind", manifest.key) is None
    assert new_remote().has([manifest.reference, "kind/0"]) == set()
    assert new_remote().push(one, manifest)
    assert sum("uploadId" in path and method == "PUT" for method, path, _ in s3.seen) == 3
    assert new_remote().pull(two, "kind", manifest.key) == manifest
    assert two.lookup("kind", manifest.key) == manifest
    assert contents(two, manifest) == contents(one, manifest)
    assert not (two.root / ".work" / manifest.reference).exists()
    assert new_remote().references() == {manifest.reference}
    assert new_remote().has([manifest.reference, "kind/0"]) == {manifest.reference}


def test_a_folder_is_a_mirror_too(machines, folder):
    one, two = machines
    manifest = publish(one)
    assert folder.push(one, manifest)
    assert not folder.push(one, manifest)
    assert folder.pull(two, "kind", manifest.key) == manifest
    assert contents(two, manifest) == contents(one, manifest)
    assert folder.references() == {manifest.reference}


@pytest.mark.parametrize("name", ["manifest.json", "file"])
def test_what_cannot_be_read_is_not_said_to_be_damaged(machines, folder, unreadable, name):
    manifest = publish(machines[0])
    unreadable.add(str(machines[0].root / manifest.reference / name))
    with pytest.raises(StorageError, match="Stale file handle"):
        folder.push(machines[0], manifest)
    assert not folder.has([manifest.reference])
    unreadable.clear()
    assert folder.push(machines[0], manifest)


def test_the_second_push_sends_nothing(machines, new_remote, s3):
    manifest = publish(machines[0])
    new_remote().push(machines[0], manifest)
    s3.seen.clear()
    assert not new_remote().push(machines[0], manifest)
    assert {method for method, _, _ in s3.seen} == {"GET"}


def test_a_push_that_was_cut_off_goes_on_with_what_is_there(machines, new_remote, s3):
    manifest = publish(machines[0])
    s3.fate = lambda method, path: "503" if "manifest.json" in path and method == "PUT" else None
    with pytest.raises(ServiceUnavailable, match="does not answer as it should"):
        new_remote().push(machines[0], manifest)
    assert new_remote().pull(machines[1], "kind", manifest.key) is None
    s3.fate = lambda method, path: None
    s3.seen.clear()
    assert new_remote().push(machines[0], manifest)
    puts = [path for method, path, _ in s3.seen if method == "PUT" and ".probe" not in path]
    assert [path.rpartition("/")[2] for path in puts] == [
        "empty",
        "manifest.json",
    ]  # a sign of life


def test_credentials_that_have_expired_are_told_as_such(machines, new_remote, s3):
    remote, manifest = new_remote(), publish(machines[0])
    s3.fate = lambda method, path: "expired"
    try:
        with pytest.raises(ServiceUnavailable, match=r"access is refused \(ExpiredToken\)"):
            remote.push(machines[0], manifest)
    finally:
        s3.fate = lambda method, path: None


def test_a_file_of_another_size_is_sent_again(machines, folder):
    one, two = machines
    manifest = publish(one)
    folder.push(one, manifest)
    file = next((two.root.parent / "mirror" / manifest.reference).glob("*/file"))
    file.write_text("cut")
    assert folder.push(one, manifest)
    assert folder.pull(two, "kind", manifest.key) == manifest


def test_what_is_collected_here_before_it_is_pushed_is_told_as_such(machines, folder):
    manifest = publish(machines[0])
    shutil.rmtree(machines[0].root / manifest.reference)
    with pytest.raises(
        ArtifactMissing, match=r"manifest.json is missing or damaged and is not pushed"
    ):
        folder.push(machines[0], manifest)


def test_a_push_mends_what_a_collection_takes_from_it(machines, folder, tmp_path):
    """Of a push that was given up long ago, while its manifest is on the way."""
    manifest = publish(machines[0])
    create = folder.bucket.create

    def collect_and_create(name, content):
        for file in (tmp_path / "mirror" / manifest.reference).glob("*/*"):
            file.unlink() if file.is_file() else shutil.rmtree(file)
        folder.bucket.create = create
        return create(name, content)

    folder.bucket.create = collect_and_create
    assert folder.push(machines[0], manifest)
    assert folder.pull(machines[1], "kind", manifest.key) == manifest


def test_a_push_that_is_taken_from_again_and_again_says_so(machines, folder, tmp_path):
    manifest = publish(machines[0])
    folder.bucket.listed = lambda prefix: {}
    with pytest.raises(ServiceUnavailable, match="loses files while it is pushed"):
        folder.push(machines[0], manifest)


def test_a_lost_answer_to_the_last_write_is_no_conflict(machines, new_remote, s3):
    manifest = publish(machines[0])
    lost = iter(["drop"])
    s3.fate = lambda method, path: (
        next(lost, None) if method == "PUT" and "manifest.json" in path else None
    )
    assert new_remote().push(machines[0], manifest)
    assert ("PUT", "drop") in [(method, fate) for method, _, fate in s3.seen]
    assert new_remote().pull(machines[1], "kind", manifest.key) == manifest


@pytest.mark.parametrize("seed", range(3))
def test_a_network_that_fails_now_and_then_changes_nothing(machines, new_remote, s3, seed):
    one, two = machines
    rng, lock = random.Random(seed), threading.Lock()  # noqa: S311  # no secret
    fates = ("503", "drop", "cut", "slow", *[None] * 12)

    def fate(method, path):
        with lock:
            return rng.choice(fates)

    s3.fate = fate
    manifest = publish(one, size=LONG)
    in_five_tries(lambda: new_remote().push(one, manifest))
    assert in_five_tries(lambda: new_remote().pull(two, "kind", manifest.key)) == manifest
    assert contents(two, manifest) == contents(one, manifest)
    assert len({fate for _, _, fate in s3.seen}) >= 4


def test_two_machines_that_made_the_same_agree(machines, new_remote):
    one, two = machines
    first, second = publish(one), publish(two, made="2026-01-02")
    assert first != second
    assert new_remote().push(one, first)
    assert not new_remote().push(two, second)


@pytest.mark.parametrize("is_same", [True, False])
def test_of_machines_that_push_one_key_at_once_one_wins_and_none_mixes(
    tmp_path, new_remote, is_same
):
    stores = [ArtifactStore(tmp_path / str(number)) for number in range(8)]
    made = [
        publish(store, content="same" if is_same else f"{number}", made=f"2026-01-0{number + 1}")
        for number, store in enumerate(stores)
    ]

    def push(number):
        try:
            return new_remote().push(stores[number], made[number])
        except RemoteConflict as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(push, range(8)))
    refused = [result for result in results if isinstance(result, str)]
    assert len(refused) == (0 if is_same else 7)
    assert all("with other content" in item and "(2 files differ, file" in item for item in refused)
    assert True in results
    last = ArtifactStore(tmp_path / "last")
    manifest = new_remote().pull(last, "kind", made[0].key)
    assert manifest in made
    assert last.lookup("kind", manifest.key)


def test_of_many_that_create_one_object_at_once_one_does(new_remote, s3):
    for _ in range(3):
        new_remote().bucket.contest()
    puts = [path for method, path, _ in s3.seen if method == "PUT"]
    assert len(puts) == 3 * CONTENDERS


def test_a_server_that_ignores_conditions_is_refused(machines, new_remote, s3):
    s3.fate = lambda method, path: "lie" if method == "PUT" else None
    with pytest.raises(ServiceUnavailable, match="ignores the condition that nothing be there"):
        new_remote().push(machines[0], publish(machines[0]))
    with pytest.raises(ServiceUnavailable, match=f"{CONTENDERS} were told that they did"):
        new_remote().bucket.contest()


@pytest.mark.parametrize(
    "change", ["content", "size", "gone", "manifest", "of another key", "escape"]
)
def test_what_is_damaged_there_is_named_and_never_comes_here(machines, folder, change):
    one, two = machines
    manifest = publish(one)
    folder.push(one, manifest)
    artifact = two.root.parent / "mirror" / manifest.reference
    file, text = next(artifact.glob("*/file")), artifact / "manifest.json"
    named = f"{manifest.reference}/manifest.json"
    document = json.loads(text.read_text())
    match change:
        case "content":
            file.write_text(file.read_text().upper())
        case "size":
            file.write_text("x")
        case "gone":
            file.unlink()
        case "manifest":
            text.write_text("{")
        case "of another key":
            text.write_text(json.dumps({**document, "key": "0"}))
        case "escape":
            record = document["files"]["file"]
            text.write_text(json.dumps({**document, "files": {"../../../out": record}}))
    if change in {"content", "size", "gone"}:
        named = str(file.relative_to(two.root.parent / "mirror"))
    with pytest.raises(RemoteDamaged, match=f"{named} is missing or not what was put there"):
        folder.pull(two, "kind", manifest.key)
    assert two.lookup("kind", manifest.key) is None


def test_an_interrupted_pull_goes_on_with_what_is_here(machines, new_remote, s3):
    one, two = machines
    manifest = publish(one)
    new_remote().push(one, manifest)
    s3.fate = lambda method, path: "503" if path.endswith("/file") else None
    with pytest.raises(ServiceUnavailable):
        new_remote().pull(two, "kind", manifest.key)
    s3.fate = lambda method, path: None
    s3.seen.clear()
    assert new_remote().pull(two, "kind", manifest.key) == manifest
    assert sum(".txt" in path for _, path, _ in s3.seen) == 0


def test_a_damaged_file_of_the_store_is_not_sent(machines, folder):
    manifest = publish(machines[0])
    file = machines[0].root / manifest.reference / "file"
    file.write_text(file.read_text().upper())
    with pytest.raises(ArtifactMissing, match="file is missing or damaged and is not pushed"):
        folder.push(machines[0], manifest)
    assert folder.has([manifest.reference]) == set()


def test_records_go_along(machines, folder):
    one, two = machines
    step = RecordedStep(names=("a step",), stages=("s",), kind="kind", key="0")
    ids = [write_record(one.root, "run", name, {}, (step,)).id for name in ("a", "b")]
    for run in ids:
        folder.push_record(one.root, run)
    assert folder.record_ids() == ids[::-1]
    for run in ids:
        folder.pull_record(two.root, run)
    assert list(read_records(two.root)) == list(read_records(one.root))
    with pytest.raises(InvalidRecord, match=r"mirror/runs/none\.json is no record of a run"):
        folder.record("none")


@pytest.mark.parametrize(
    "url", ["ftp://bucket/prefix", "bucket/prefix", "s3:///prefix", "http://host/x", ""]
)
def test_an_address_of_another_form_is_refused(url):
    with pytest.raises(
        InvalidConfig, match=r"write s3://bucket/prefix, gs://bucket/prefix or file"
    ):
        Remote(url)


@pytest.mark.parametrize(
    "url", ["s3://somebody:SECRET@bucket/x", "s3://bucket/x?secret_access_key=SECRET"]
)
def test_credentials_in_an_address_are_refused_and_not_repeated(url):
    with pytest.raises(InvalidConfig, match="AWS_SECRET_ACCESS_KEY") as error:
        Remote(url)
    assert "SECRET@" not in str(error.value)
    assert "=SECRET" not in str(error.value)


MISTAKES = {
    "no such bucket": ({}, "s3://elsewhere/prefix", "there is no such bucket or folder"),
    "wrong key": ({"AWS_ACCESS_KEY_ID": "nobody"}, "", r"refused \(InvalidAccessKeyId\)"),
    "wrong secret": (
        {"AWS_SECRET_ACCESS_KEY": "another-secret"},
        "",
        r"refused \(SignatureDoesNotMatch\)",
    ),
    "no keys": (
        {
            "AWS_ACCESS_KEY_ID": "",
            "AWS_SECRET_ACCESS_KEY": "",
            "AWS_METADATA_ENDPOINT": "http://127.0.0.1:1",
        },
        "",
        "there are no credentials",
    ),
    "one key": ({"AWS_ACCESS_KEY_ID": ""}, "", "there are no credentials"),
    "nobody there": ({"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "", r"should \(Connect\)"),
    "no such folder": ({}, "file:///no/such/folder", "there is no such bucket or folder"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_clear_message_without_secrets(
    machines, new_remote, monkeypatch, caplog, mistake
):
    variables, url, message = MISTAKES[mistake]
    manifest = publish(machines[0])
    for name, value in variables.items():
        if value:
            monkeypatch.setenv(name, value)
        else:
            monkeypatch.delenv(name)
    remote = Remote(url) if url else new_remote()
    for use in (
        lambda: remote.push(machines[0], manifest),
        lambda: remote.pull(machines[1], "kind", manifest.key),
        remote.check,
        remote.record_ids,
        remote.references,
        lambda: remote.has([manifest.reference]),
    ):
        with pytest.raises(ServiceUnavailable, match=message) as error:
            use()
        told = "".join(traceback.format_exception(error.value)) + caplog.text
        assert str(error.value).startswith(f"{remote.url}: ")
        assert "\n" not in str(error.value)
        secret = os.environ.get("AWS_SECRET_ACCESS_KEY", "Signature=")
        assert not any(text in told for text in (secret, "Signature=", "<Error>"))


def test_no_secret_gets_into_a_file(machines, new_remote, s3, monkeypatch):
    one, two = machines
    manifest = publish(one)
    new_remote().push(one, manifest)
    new_remote().pull(two, "kind", manifest.key)
    shutil.rmtree(two.root / manifest.reference)
    s3.fate = lambda method, path: "503" if path.endswith("/file") else None
    with pytest.raises(ServiceUnavailable):
        new_remote().pull(two, "kind", manifest.key)
    files = [path for store in machines for path in store.root.rglob("*") if path.is_file()]
    assert len(files) > 6
    assert not any(os.environ["AWS_SECRET_ACCESS_KEY"].encode() in f.read_bytes() for f in files)
    assert not any(b"somebody" in file.read_bytes() for file in files)


@pytest.mark.usefixtures("silent_server")
def test_a_server_that_does_not_answer_is_given_up(monkeypatch):
    monkeypatch.setattr("data.artifacts.bucket._ANSWER", timedelta(seconds=1))
    started = time.monotonic()
    with pytest.raises(ServiceUnavailable, match="does not answer as it should"):
        Remote("s3://bucket/prefix").references()
    assert time.monotonic() - started < 30
