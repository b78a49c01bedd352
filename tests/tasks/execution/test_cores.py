import threading
import time

from tasks.execution.cores import Cores


def test_no_more_cores_are_taken_than_there_are():
    cores, taken, most = Cores(4), 0, []
    lock = threading.Lock()

    def work(place, share):
        nonlocal taken
        with cores.take(share, place) as count:
            with lock:
                taken += count
                most.append(taken)
            time.sleep(0.01)
            with lock:
                taken -= count

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
    cores, order = Cores(2), []

    def work(place, share):
        with cores.take(share, place):
            order.append(place)
            time.sleep(0.05)

    with cores.take(0.5, 0):
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
    with Cores(1).take(0.5, 0) as count:
        assert count == 1
