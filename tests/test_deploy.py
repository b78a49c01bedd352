import json
from pathlib import Path

import pytest
import yaml
from docker.types import HostConfig
from docker.utils.build import exclude_paths
from prefect.events.schemas.automations import AutomationCore
from prefect.utilities.schema_tools.validation import validate
from prefect.utilities.templating import apply_values, find_placeholders

from tasks.execution.machine import HOST_LOCKS

ROOT = Path(__file__).parents[1]


def pool(kind):
    return json.loads((ROOT / "deploy" / f"{kind}-pool.json").read_text())


def job(kind, **values):
    """What a worker makes of a pool's template and a deployment's job variables."""
    template = pool(kind)
    validate(values, template["variables"], raise_on_error=True)
    properties = template["variables"]["properties"].items()
    defaults = {name: item["default"] for name, item in properties if "default" in item}
    return apply_values(template["job_configuration"], defaults | values)


@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
def test_variables_of_a_pool_are_those_that_its_jobs_use(kind):
    template = pool(kind)
    used = {item.name for item in find_placeholders(template["job_configuration"])}
    assert used == set(template["variables"]["properties"])


def test_a_pool_offers_no_waiting_times_that_its_worker_does_not_read():
    assert not [name for name in pool("kubernetes")["variables"]["properties"] if "watch" in name]


def test_containers_get_gpus_and_shared_memory():
    def host(**values):
        options = job("docker", **values)["container_create_kwargs"]
        assert options.pop("entrypoint") == ["/usr/bin/env"]  # else the image's takes the command
        return HostConfig(version="1.44", **options)

    request = {"Driver": "nvidia", "DeviceIDs": [], "Capabilities": [["gpu"]], "Options": {}}
    assert host()["DeviceRequests"] == [request | {"Count": -1}]
    assert host(gpu_count=2)["DeviceRequests"] == [request | {"Count": 2}]
    assert host()["ShmSize"] == 8 * 2**30
    assert f"detdiffusion-gpus:{HOST_LOCKS}" in job("docker")["volumes"]  # a GPU is one container's
    assert (
        f"--mode=1777 {HOST_LOCKS}" in (ROOT / "Dockerfile").read_text()
    )  # of whom a new volume is


def test_pods_get_gpus_and_shared_memory_and_are_not_retried_by_kubernetes():
    values = {"image": "registry/detdiffusion", "gpu_count": 2, "memory_limit": "64Gi"}
    spec = job("kubernetes", **values)["job_manifest"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 2, "memory": "64Gi"}
    assert container["command"] == ["/usr/bin/env"]
    mounts = {item["name"]: item["mountPath"] for item in container["volumeMounts"]}
    volumes = {mounts[item["name"]]: item for item in pod["volumes"]}
    assert volumes["/dev/shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "8Gi"}  # noqa: S108
    assert volumes["/artifacts"]["persistentVolumeClaim"]["claimName"] == "detdiffusion-artifacts"
    assert (spec["backoffLimit"], pod["terminationGracePeriodSeconds"]) == (0, 60)


def test_an_image_is_built_from_what_its_dockerfile_copies():
    patterns = (ROOT / ".dockerignore").read_text().splitlines()
    context = exclude_paths(str(ROOT), [line for line in patterns if not line.startswith("#")])
    modules = {
        str(path.relative_to(ROOT))
        for package in ("data", "models", "tasks", "flows")
        for path in (ROOT / package).rglob("*.py")
    }
    assert modules <= context
    files = {"LICENSE", "README.md", "prefect.yaml", "pyproject.toml", "requirements.lock"}
    sent = {"Dockerfile", ".dockerignore", "data", "models", "tasks", "flows"}
    assert {path.partition("/")[0] for path in context} == sent | files


@pytest.mark.filterwarnings("ignore")  # Prefect's server libraries warn a lot
def test_a_run_without_signs_of_life_is_dead_whatever_the_names_of_its_states():
    from prefect.server.events.schemas.automations import AutomationCreate
    from prefect.server.events.schemas.events import Resource

    (given,) = yaml.safe_load((ROOT / "deploy" / "automations.yaml").read_text())
    sent = AutomationCore.model_validate(given).model_dump(mode="json")
    automation = AutomationCreate.model_validate(sent)
    trigger = automation.trigger
    assert trigger.starts_after("prefect.flow-run.heartbeat")
    assert not trigger.starts_after("prefect.flow-run.Running")
    for name in ("heartbeat", "Cached", "Completed", "Crashed", "Suspended"):
        assert trigger.expects(f"prefect.flow-run.{name}")
    assert trigger.meets_threshold(0)
    assert not trigger.meets_threshold(1)

    for kind, is_covered in (("flow-run", True), ("task-run", False)):
        resource = Resource.model_validate({"prefect.resource.id": f"prefect.{kind}.1"})
        assert trigger.covers_resources(resource, []) == is_covered
    (action,) = automation.actions
    assert (action.type, action.state, action.force) == ("change-flow-run-state", "CRASHED", False)
