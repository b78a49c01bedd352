import os
import threading
import time

import pytest

from models.nvidia import Gpu
from tasks.execution.machine import Machine, available_cores


@pytest.mark.parametrize(
    ("membership", "files", "cores"),
    [
        ("0::/a/b", {"a/b/cpu.max": "max 100000"}, 64),
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "250000 100000"}, 3),
        ("0::/", {"cpu.max": "50000 100000"}, 1),
        ("0::/of/the/host", {"cpu.max": "200000 100000"}, 2),
        (
            "4:memory:/m\n3:cpu,cpuacct:/docker/7",
            {"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"},
            2,
        ),
        ("1:cpu:/", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
        ("", {}, 64),
    ],
)
def test_the_quota_of_a_container_limits_the_cores(tmp_path, monkeypatch, membership, files, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)))
    for name, text in files.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "membership").write_text(membership)
    assert available_cores(tmp_path / "membership", tmp_path / "groups") == cores


def test_the_cores_of_this_machine_are_those_it_may_use():
    assert 1 <= available_cores() <= len(os.sched_getaffinity(0))


def test_no_more_cores_are_taken_than_there_are():
    machine, taken, most = Machine(4), 0, []
    lock = threading.Lock()

    def work(place, share):
        nonlocal taken
        with machine.take(share, place) as part:
            with lock:
                taken += part.cores
                most.append(taken)
            time.sleep(0.01)
            with lock:
                taken -= part.cores

    threads = [
        threading.Thread(target=work, args=item) for item in enumerate((0.5, 1.0, 0.25, 0.1) * 8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert taken == 0
    assert len(most) == 32
    assert max(most) <= 4


def test_the_lowest_place_is_served_first_however_large_its_share():
    machine, order = Machine(2), []

    def work(place, share):
        with machine.take(share, place):
            order.append(place)
            time.sleep(0.05)

    with machine.take(0.5, 0):
        threads = [
            threading.Thread(target=work, args=item) for item in ((3, 0.5), (2, 0.5), (1, 1.0))
        ]
        for thread in reversed(threads):
            thread.start()
            time.sleep(0.05)
        assert order == []
    for thread in threads:
        thread.join(10)
    assert order[0] == 1
    assert sorted(order) == [1, 2, 3]


def test_everybody_gets_one_core_at_least():
    with Machine(1).take(0.5, 0) as part:
        assert (part.cores, part.gpus) == (1, ())


def test_a_gpu_is_one_steps_at_a_time_and_who_needs_several_is_not_overtaken():
    machine, order = Machine(8, ["3", "GPU-a"]), []

    def work(place, num_gpus):
        with machine.take(num_gpus / 2, place, num_gpus) as part:
            order.append((place, *part.gpus))

    threads = [threading.Thread(target=work, args=item) for item in ((4, 1), (3, 1), (2, 2))]
    with machine.take(0.5, 0, 1) as first:
        with machine.take(0.5, 1, 1) as second:
            assert (first.gpus, second.gpus) == (("3",), ("GPU-a",))
            for thread in threads:
                thread.start()
            while len(machine._waiting) < 3:
                time.sleep(0.01)
        time.sleep(0.5)
        assert order == []  # one of them is free, and the next step needs both
    for thread in threads:
        thread.join(20)
    assert order[0] == (2, "3", "GPU-a")
    assert sorted(place for place, *_ in order) == [2, 3, 4]


def told_once(told):
    """Notes who is waited for, and lets the waiting end by the next look."""

    def on_wait(who):
        told.append(who)
        if len(told) > 1:
            raise InterruptedError

    return on_wait


def test_a_gpu_is_one_runs_of_the_host_at_a_time():
    one, two = Machine(2, ["0", "1"]), Machine(2, ["0", "1"])
    told = []
    with one.take(0.5, 0, 1) as first, two.take(0.5, 0, 1) as second:
        assert (first.gpus, second.gpus) == (("0",), ("1",))
        with pytest.raises(InterruptedError), two.take(0.5, 1, 1, told_once(told)):
            pass
        with two.take(0.5, 2) as cores_alone:
            assert cores_alone.gpus == ()
    assert told[0].startswith(f"process {os.getpid()} on ")
    with two.take(1.0, 3, 2) as both:
        assert both.gpus == ("0", "1")


def test_who_needs_two_gpus_keeps_none_while_another_run_has_one():
    one, two, told = Machine(2, ["0", "1"]), Machine(2, ["0", "1"]), []
    with one.take(0.5, 0, 1):
        with pytest.raises(InterruptedError), two.take(1.0, 0, 2, told_once(told)):
            pass
        with one.take(0.5, 1, 1) as other:
            assert other.gpus == ("1",)


def test_a_step_that_waits_for_a_gpu_gets_it_when_the_other_run_is_done():
    one, two, told = Machine(1, ["0"]), Machine(1, ["0"]), []
    holding, done = threading.Event(), threading.Event()

    def hold():
        with one.take(1.0, 0, 1):
            holding.set()
            done.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    holding.wait(20)
    with two.take(1.0, 0, 1, lambda who: (told.append(who), done.set())) as part:
        assert part.gpus == ("0",)
    thread.join(20)
    assert len(told) >= 1


def test_a_gpu_that_another_run_calls_otherwise_is_the_same(monkeypatch):
    gpu = Gpu("GPU-1a2b-77", "H100", 80e9)
    monkeypatch.setattr(
        "tasks.execution.machine.known_gpus", lambda names: dict.fromkeys(names, gpu)
    )
    told, one, two = [], Machine(1, ["0"]), Machine(1, ["GPU-1a2b"])
    with (
        one.take(1.0, 0, 1),
        pytest.raises(InterruptedError),
        two.take(1.0, 0, 1, told_once(told)),
    ):
        pass
    assert len(told) == 2


def test_a_step_that_needs_no_gpu_does_not_stand_behind_one_that_waits_for_another_run():
    one, two = Machine(2, ["0"]), Machine(2, ["0"])
    waiting, done = threading.Event(), threading.Event()

    def wait():
        with two.take(0.5, 0, 1, lambda who: waiting.set()):
            done.set()

    thread = threading.Thread(target=wait)
    with one.take(0.5, 0, 1):
        thread.start()
        assert waiting.wait(20)
        with two.take(1.0, 1) as part:
            assert part.cores == 2
        assert not done.is_set()
    thread.join(20)
    assert done.is_set()


def test_a_step_never_meets_a_lock_of_its_own_run():
    machine, told = Machine(2, ["0"]), []

    def work(place):
        with machine.take(0.5, place, 1, told.append):
            pass

    threads = [threading.Thread(target=work, args=(place,)) for place in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert told == []


def test_names_of_parts_of_gpus_are_no_folders(tmp_path):
    with Machine(1, ["MIG-GPU-a/1/0"], tmp_path).take(1.0, 0, 1) as part:
        assert part.gpus == ("MIG-GPU-a/1/0",)
    assert [path.name for path in tmp_path.iterdir()] == ["MIG-GPU-a_1_0"]


def test_where_no_lock_can_be_steps_go_without(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with Machine(1, ["0"], tmp_path / "file").take(1.0, 0, 1) as part:
        assert part.gpus == ("0",)
