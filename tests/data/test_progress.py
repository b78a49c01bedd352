from data import progress
from data.progress import Seldom


def test_reports_are_passed_on_once_a_second_and_the_last_one_always(monkeypatch):
    now, passed = [100.0], []
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    report = Seldom(lambda *item: passed.append(item))
    for second, done in [(0.0, 1), (0.5, 2), (0.9, 3), (1.1, 4), (1.2, 9), (1.3, 9)]:
        now[0] = 100 + second
        report(done, 9, "things")
    assert [done for done, _, _ in passed] == [1, 4, 9, 9]
    assert passed[0] == (1, 9, "things")
