import threading
import time

from tasks.execution.cores import Cores


def test_no_more_cores_are_taken_than_there_are():
    cores, taken, most = Cores(4), 0, []
    lock = threading.Lock()

    def work(share):
        nonlocal taken
        with cores.take(share) as count:
            with lock:
                taken += count
                most.append(taken)
            time.sleep(0.01)
            with lock:
                taken -= count

    threads = [threading.Thread(target=work, args=(share,)) for share in (0.5, 1.0, 0.25, 0.1) * 8]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert taken == 0
    assert len(most) == 32
    assert max(most) <= 4


def test_a_large_share_is_served_in_its_turn():
    cores, order = Cores(2), []

    def work(name, share):
        with cores.take(share):
            order.append(name)
            time.sleep(0.05)

    with cores.take(0.5):
        threads = [
            threading.Thread(target=work, args=item) for item in (("all", 1.0), ("half", 0.5))
        ]
        for thread in threads:
            thread.start()
            time.sleep(0.05)
        assert order == []
    for thread in threads:
        thread.join(10)
    assert order == ["all", "half"]


def test_everybody_gets_one_core_at_least():
    with Cores(1).take(0.5) as count:
        assert count == 1
