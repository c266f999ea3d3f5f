"""The manifests in cluster/k8s/: fields that exist, pods that Kubernetes takes, and what our own rules ask of them."""

import copy
import re
import shlex
from importlib.metadata import version
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from cluster.config import TrainRecipe
from cluster.dry_run import plan
from cluster.recipe import load
from tests.cluster.kuberay import SCHEMAS

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "cluster" / "k8s"
KUBERNETES = "1.31"
UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def documents(name):
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def manifest(name):
    (document,) = documents(name)
    return document


def cluster_of(document):
    spec = document["spec"]
    return spec["rayClusterSpec"] if document["kind"] == "RayJob" else spec["rayClusterConfig"]


def groups(document):
    """Name, start parameters and pod template of every group."""
    cluster = cluster_of(document)
    head = cluster["headGroupSpec"]
    yield "head", head["rayStartParams"], head["template"]
    for group in cluster["workerGroupSpecs"]:
        yield group["groupName"], group["rayStartParams"], group["template"]


def num_bytes(quantity):
    number, unit = re.fullmatch(r"(\d+)(\w*)", quantity).groups()
    return int(number) * UNITS.get(unit, 1)


PODS = [
    pytest.param(document, name, params, template, id=f"{document['kind']}-{name}")
    for document in map(manifest, ("rayjob.yaml", "rayservice.yaml"))
    for name, params, template in groups(document)
]
each_pod = pytest.mark.parametrize(("document", "name", "params", "template"), PODS)


@pytest.mark.parametrize("name", ["rayjob.yaml", "rayservice.yaml"])
def test_fields_are_those_of_kuberay(name):
    document = manifest(name)
    jsonschema.validate(document, SCHEMAS[document["kind"]])


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "backOffLimit"), 3),
        (("spec", "submissionMode"), "K8SJobMode"),
        (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("spec", "activeDeadlineSeconds"), 0),
    ],
)
def test_a_slip_in_a_field_is_noticed(path, value):
    document = copy.deepcopy(manifest("rayjob.yaml"))
    *above, last = path
    place = document
    for key in above:
        place = place[key]
    place[last] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, SCHEMAS["RayJob"])


@each_pod
def test_kubernetes_takes_the_pods(document, name, params, template):
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, **template["metadata"]}} | {
        "spec": template["spec"]
    }
    kubernetes_validate.validate(pod, KUBERNETES, strict=True)
    broken = copy.deepcopy(pod)
    broken["spec"]["containers"][0]["readinessProbe"]["httpget"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, KUBERNETES, strict=True)


def test_kubernetes_takes_the_volume_and_the_network_policy():
    for document in documents("storage.yaml"):
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


@each_pod
def test_pods_run_without_privileges_and_can_be_probed(document, name, params, template):
    user = template["spec"]["securityContext"]
    assert user["runAsNonRoot"]
    assert user["runAsUser"] > 0
    (container,) = template["spec"]["containers"]
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["port"] in (8265, 52365, 8000)
    alive = container["livenessProbe"]
    assert alive["periodSeconds"] * alive["failureThreshold"] >= 600, "slow is not dead"


@each_pod
def test_memory_holds_what_the_pod_asks_for(document, name, params, template):
    (container,) = template["spec"]["containers"]
    resources = container["resources"]
    assert resources["requests"] == resources["limits"]
    memory = num_bytes(resources["limits"]["memory"])
    (shm,) = [v["emptyDir"] for v in template["spec"]["volumes"] if v.get("emptyDir", {}).get("medium") == "Memory"]
    # Ray takes 30 % of the memory for its store unless it is told
    store = int(params.get("object-store-memory", 0.3 * memory))
    assert store <= num_bytes(shm["sizeLimit"]) < memory
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounted["shm"] == "/dev/shm"
    assert mounted["shared"] == "/shared"
    assert {mount["name"] for mount in container["volumeMounts"]} == {v["name"] for v in template["spec"]["volumes"]}


@each_pod
def test_nothing_secret_is_written_down(document, name, params, template):
    (container,) = template["spec"]["containers"]
    for variable in container["env"]:
        if re.search("TOKEN|KEY|PASSWORD", variable["name"]):
            assert "value" not in variable
            assert variable["valueFrom"]["secretKeyRef"]["name"] == "unmask"


@pytest.mark.parametrize("name", ["rayjob.yaml", "rayservice.yaml"])
def test_the_cluster_is_that_of_our_packages_and_asks_for_a_token(name):
    cluster = cluster_of(manifest(name))
    assert cluster["rayVersion"] == version("ray")
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_images_are_targets_of_the_dockerfile():
    text = (REPOSITORY / "Dockerfile").read_text()
    targets = set(re.findall(r"^FROM \S+ AS (\S+)$", text, re.MULTILINE))
    for document in map(manifest, ("rayjob.yaml", "rayservice.yaml")):
        for _, _, template in groups(document):
            image, tag = template["spec"]["containers"][0]["image"].split(":")
            assert image == "unmask"
            assert tag in targets


def test_the_job_runs_a_recipe_that_resumes_and_fits_its_cluster(tmp_path):
    document = manifest("rayjob.yaml")
    command, verb, recipe, *options = shlex.split(document["spec"]["entrypoint"])
    assert (command, verb) == ("unmask", "train")
    assert "--resume" in options
    overrides = [options[place + 1] for place, option in enumerate(options) if option == "--set"]
    loaded = load(REPOSITORY / Path(recipe).relative_to("/app"), TrainRecipe, overrides=overrides)
    assert Path(loaded.recipe.runs_dir).is_absolute()
    needed = plan(loaded).needs
    there = {"CPU": 0.0, "GPU": 0.0}
    for group in cluster_of(document)["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        there["CPU"] += group["replicas"] * float(limits["cpu"])
        there["GPU"] += group["replicas"] * float(limits.get("nvidia.com/gpu", 0))
    assert sum(need.count * need.num_gpus for need in needed) <= there["GPU"]
    assert sum(need.count * need.num_cpus for need in needed) <= there["CPU"]


def test_a_stopped_job_has_time_for_a_checkpoint():
    environment = yaml.safe_load(manifest("rayjob.yaml")["spec"]["runtimeEnvYAML"])
    assert float(environment["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]) >= 60


def test_the_service_starts_our_application():
    config = yaml.safe_load(manifest("rayservice.yaml")["spec"]["serveConfigV2"])
    (application,) = config["applications"]
    module, attribute = application["import_path"].split(":")
    source = REPOSITORY / Path(*module.split(".")).with_suffix(".py")
    if not source.exists():
        pytest.skip(f"{source.name} is not there yet")
    from rollout import serve

    assert callable(getattr(serve, attribute))
    serve.ServeConfig.model_validate(application["args"])
    key = application["args"]["api_key_env"]
    for _, _, template in groups(manifest("rayservice.yaml")):
        assert key in {variable["name"] for variable in template["spec"]["containers"][0]["env"]}
