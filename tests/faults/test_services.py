"""What a run uses beside its own processes dies, or ends it."""

import socket
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
import yaml

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def serve(place, port):
    """Start a Prefect server; returns its process when it answers, and its address."""
    app = ["--factory", "prefect.server.api.server:create_app", "--port", str(port)]
    process, url = place.python("-m", "uvicorn", *app), f"http://127.0.0.1:{port}/api"
    place.services.append(process)
    while True:
        try:
            httpx.get(f"{url}/health", timeout=10).raise_for_status()
        except httpx.HTTPError:
            assert process.poll() is None, place.output
            time.sleep(0.5)
        else:
            return process, url


def test_prefects_temporary_server_is_killed(new_place, ends_the_same, noted):
    started, place = time.monotonic(), new_place("train-generator", "report")
    process = place.start()
    place.wait_until(process, (place.root / ".work" / "train-generator").exists)
    (server,) = place.named("uvicorn")
    server.kill()
    assert process.wait(1800) == 0, place.output
    assert place.output.count("the run goes on, but the Prefect UI does not show it") == 1
    assert "warning: the run's Prefect server is gone" in place.output
    ends_the_same(place)
    noted(
        "Prefect's temporary server killed",
        1,
        time.monotonic() - started,
        "without generator, report",
    )


def test_a_prefect_server_of_ones_own_is_killed_and_started_again(new_place, ends_the_same, noted):
    started, place = time.monotonic(), new_place("train-generator", "report")
    port = free_port()
    server, url = serve(place, port)
    process = place.start(PREFECT_API_URL=url)
    place.wait_until(process, (place.root / ".work" / "train-generator").exists)
    server.kill()
    server.wait()
    server, _ = serve(place, port)
    assert process.wait(1800) == 0, place.output
    assert "server is gone" not in place.output
    (flow_run,) = httpx.post(f"{url}/flow_runs/filter", json={}, timeout=60).json()
    assert flow_run["state_type"] == "COMPLETED"
    server.terminate()
    server.wait()
    ends_the_same(place)
    noted(
        "a Prefect server of one's own killed and started again",
        1,
        time.monotonic() - started,
        "without generator, report",
    )


@pytest.fixture
def deployed(new_place):
    """A place with a Prefect server, its worker, and the address of a run that trains the generator."""
    place = new_place("train-generator", "report")
    server, url = serve(place, free_port())
    here = {"PREFECT_API_URL": url, "PWD": str(place.folder / "cwd")}
    for command in (
        ("work-pool", "create", "local", "--type", "process"),
        ("--no-prompt", "deploy", "--prefect-file", str(ROOT / "prefect.yaml"), "--name", "smoke"),
        ("deployment", "run", "end-to-end/smoke"),
    ):
        assert place.python("-m", "prefect", *command, **here).wait() == 0, place.output
    worker = place.python("-m", "prefect", "worker", "start", "--pool", "local", **here)
    place.services.append(worker)
    place.wait_until(worker, (place.root / ".work" / "train-generator").exists)
    (run,) = httpx.post(f"{url}/flow_runs/filter", json={}, timeout=60).json()
    yield place, worker, f"{url}/flow_runs/{run['id']}"
    for process in (worker, server):
        process.terminate()
        process.wait()


def state(run):
    return httpx.get(run, timeout=60).json()["state_type"]


def test_a_run_is_cancelled_in_prefect(deployed, ends_the_same, noted):
    started, (place, worker, run) = time.monotonic(), deployed
    cancelling = {"state": {"type": "CANCELLING"}}
    httpx.post(f"{run}/set_state", json=cancelling, timeout=60).raise_for_status()
    place.wait_for_end(30)
    place.wait_until(worker, lambda: state(run) != "CANCELLING")
    assert state(run) == "CANCELLED"
    ends_the_same(place)
    noted("cancelled in Prefect", 1, time.monotonic() - started, "without generator, report")


def test_prefects_worker_is_killed(deployed, ends_the_same, noted):
    started, (place, worker, run) = time.monotonic(), deployed
    worker.kill()
    worker.wait()
    place.wait_for_end()
    assert state(run) == "CRASHED"
    ends_the_same(place)
    noted("Prefect's worker killed", 1, time.monotonic() - started, "without generator, report")


def test_a_run_without_signs_of_life_is_marked_and_no_other(empty_place):
    server, url = serve(empty_place, free_port())

    def post(path, sent):
        answer = httpx.post(f"{url}/{path}", json=sent, timeout=60).raise_for_status()
        return answer.json() if answer.content else None

    def live(run):
        sign = {
            "id": str(uuid.uuid4()),
            "occurred": datetime.now(UTC).isoformat(),
            "event": "prefect.flow-run.heartbeat",
            "resource": {"prefect.resource.id": f"prefect.flow-run.{run}"},
        }
        post("events", [sign])

    (automation,) = yaml.safe_load((ROOT / "deploy" / "automations.yaml").read_text())
    automation["trigger"]["within"] = 15
    post("automations/", automation)
    flow = post("flows/", {"name": "end-to-end"})["id"]
    running = {"flow_id": flow, "state": {"type": "RUNNING"}}
    dead, healthy, finished = (post("flow_runs/", running)["id"] for _ in range(3))
    for run in (dead, healthy, finished):
        live(run)
    post(f"flow_runs/{finished}/set_state", {"state": {"type": "COMPLETED", "name": "Cached"}})
    deadline = time.monotonic() + 180
    while state(f"{url}/flow_runs/{dead}") == "RUNNING":
        assert time.monotonic() < deadline
        live(healthy)
        time.sleep(3)
    states = [state(f"{url}/flow_runs/{run}") for run in (dead, healthy, finished)]
    assert states == ["CRASHED", "RUNNING", "COMPLETED"]
    server.terminate()
    server.wait()


@pytest.mark.parametrize("victim", ["an actor killed", "the driver killed", "the run ended"])
def test_ray_dies(new_place, ends_the_same, noted, victim):
    pytest.importorskip("ray")
    started, place = time.monotonic(), new_place("synthesize", "report")
    options = ("--set", "execution.executor=ray", "--set", "execution.num_workers=1")
    process = place.start("run", "smoke", *options)
    place.wait_until(process, lambda: place.named("ray::_Actor"), 0.05)
    (actor, *_) = place.named("ray::_Actor")
    match victim:
        case "an actor killed":
            actor.kill()
            assert process.wait() == 0, place.output
        case "the driver killed":
            place.kill(process)
        case "the run ended":
            process.terminate()
            process.wait(30)
            place.wait_for_end(30)
    ends_the_same(place)
    noted(f"Ray: {victim}", 1, time.monotonic() - started, "without synthetic sets, report")


def test_the_remote_store_is_killed(
    reference, new_place, new_s3_server, ends_the_same, noted, tmp_path
):
    started, place = time.monotonic(), new_place("train-generator", "report")
    (tmp_path / "s3").mkdir()
    server = new_s3_server(tmp_path / "s3")
    there = server.environment | {"DETDIFFUSION_REMOTE": "s3://test/runs"}
    with server:
        process = place.start(**there)
        place.wait_until(process, (place.root / ".work" / "train-generator").exists)
        server.kill()
        killed = time.monotonic()
        assert process.wait() == 0, place.output
    told = place.output.count("the run goes on without its remote")
    assert 1 <= told <= (time.monotonic() - killed) / 60 + 1
    ends_the_same(place)
    with server:
        assert place.start("push", **there).wait() == 0, place.output
        other = type(place)(tmp_path / "other")
        assert other.start("pull", **there).wait() == 0, other.output
    assert other.digests() == reference.digests()
    noted("the remote store killed", 1, time.monotonic() - started, "without generator, report")
