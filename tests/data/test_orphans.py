"""Processes end with the one that started them, however that ends."""

import signal
import subprocess
import sys

import psutil
import pytest

PROGRAMS = {
    "a process": (
        "import subprocess, sys\n"
        "code = 'from data.orphans import end_with_parent as e; e(); print(1, flush=True); input()'\n"
        "subprocess.run([sys.executable, '-c', code])"
    ),
    "workers": (
        "from data.workers import Workers\n"
        "with Workers(7, 2) as workers:\n"
        "    print(list(workers.map(divmod, [1, 2, 3])), flush=True)\n"
        "    input()"
    ),
    "scenes": (
        "import sys\n"
        "from pathlib import Path\n"
        "from data.scenes.scenes import write_unlabelled_scenes\n"
        "def show(*report): print(report, flush=True)\n"
        "write_unlabelled_scenes(Path(sys.argv[1]), 10**5, num_workers=2, on_progress=show)"
    ),
}


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("program", PROGRAMS)
def test_processes_end_with_their_parent(program, end, tmp_path):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", PROGRAMS[program], tmp_path], **pipes) as parent:
        assert parent.stdout.readline()
        started = psutil.Process(parent.pid).children(recursive=True)
        assert started
        parent.send_signal(end)
        assert parent.wait(10) == -end
        _, alive = psutil.wait_procs(started, timeout=10)
        left = [item for item in alive if item.status() != psutil.STATUS_ZOMBIE]
        for item in left:
            item.kill()
    assert not left
