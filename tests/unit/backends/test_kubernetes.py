"""Manifests of every example and of every kind: fields that an API server knows, secrets by reference alone, no rights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from launcher.backends import registry
from launcher.cli.goldens import machine_for
from launcher.errors import LauncherError
from launcher.plan.away import coming_machine
from launcher.plan.make import make_plan
from launcher.plan.plan import Plan
from launcher.rundir.folder import RunDir
from launcher.spec.job import JobSpec
from launcher.spec.load import open_job, open_job_text
from launcher.supervise.facts import find_shape
from launcher.supervise.sealed import sealed_texts
from tests.unit.backends import schemas

ROOT = Path(__file__).parents[3]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
KINDS = ["jobset", "trainjob", "job"]
PODS = {"image": "registry.example.com/zerolaunch@sha256:" + "0" * 64, "claim": "runs", "cpus": 4, "memory_gib": 1024}
JOB = """
name: job_1
model: {new: {family: llama, layers: 2, hidden: 64, heads: 4, positions: 256}, tokenizer: {train: {vocab: 512}}}
cluster: {backend: kubernetes, nodes: 3, slots: 2, kubernetes: %s%s}
batch: {global: 24}
stages:
  - {kind: pretrain, data: {source: python-docs, max_tokens: 64}, steps: 10}
"""


def planned(job: JobSpec, places) -> Plan:  # type: ignore[no-untyped-def]
    return make_plan(job, machine=coming_machine(job.cluster), shape=find_shape(job), places=places)


def objects(text: str = "", *, path: str = "/somewhere/one", env: str = "", **fields: object) -> dict[str, dict]:
    """Kind -> object, of a small job with these fields in its kubernetes block."""
    kubernetes = json.dumps({**PODS, **fields})
    loaded = open_job_text(text or JOB % (kubernetes, env), file_name="job.yaml", folder=Path("/nowhere"))
    return of(loaded.job, loaded.text, planned(loaded.job, loaded.places), path)


def of(job: JobSpec, text: str, plan: Plan, path: str) -> dict[str, dict]:
    backend = registry.load_backend("kubernetes")
    assert isinstance(backend, registry.Renders)
    files = backend.rendered(job, plan, RunDir(Path(path)), sealed_texts(job, text, plan))
    found = [one for file in files.values() for one in yaml.safe_load_all(file)]
    assert len({one["kind"] for one in found}) == len(found)
    return {one["kind"]: one for one in found}


def job_spec(found: dict[str, dict]) -> dict:
    """Of the Job that makes the pods, wherever it stands."""
    if "Job" in found:
        return found["Job"]["spec"]
    holder = found["JobSet"]["spec"] if "JobSet" in found else found["TrainingRuntime"]["spec"]["template"]["spec"]
    return holder["replicatedJobs"][0]["template"]["spec"]


def pod(found: dict[str, dict]) -> dict:
    return job_spec(found)["template"]["spec"]


def container(found: dict[str, dict]) -> dict:
    [one] = pod(found)["containers"]
    return one


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_renders_to_what_an_api_server_knows(example: Path, kind: str) -> None:
    own = open_job(example)
    slots = machine_for(own.job).slots
    overrides = [
        "cluster.backend=kubernetes",
        "cluster.slurm=null",
        f"cluster.slots={slots}",
        f"cluster.kubernetes={json.dumps({**PODS, 'kind': kind})}",
    ]
    loaded = open_job(example, overrides)
    found = of(loaded.job, loaded.text, planned(loaded.job, loaded.places), "/somewhere/one")
    assert {name: schemas.schema_errors(one) for name, one in found.items()} == {name: [] for name in found}


EVERYTHING = {
    "namespace": "team",
    "storage_gib": 500,
    "storage_class": "fast",
    "claim": None,
    "devices": {"rdma/hca_shared": 8, "vpc.amazonaws.com/efa": 32},
    "secrets": {"HF_TOKEN": {"secret": "hf", "key": "token"}},
    "env_from": ["all-of-it"],
    "pull_secrets": ["registry"],
    "queue": "training",
    "priority": "high",
    "service_account": "trainer",
    "node_selector": {"topology.example.com/rack": "on"},
    "tolerations": [{"key": "nvidia.com/gpu"}, {"key": "team", "value": "1", "effect": "NoExecute"}],
    "annotations": {"k8s.v1.cni.cncf.io/networks": 'a"b: [x] $(HOME)'},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_lands_where_an_api_server_knows_it(kind: str) -> None:
    found = objects(kind=kind, **EVERYTHING)
    assert {name: schemas.schema_errors(one) for name, one in found.items()} == {name: [] for name in found}
    one, spec = container(found), pod(found)
    assert one["resources"]["limits"] == {"rdma/hca_shared": "8", "vpc.amazonaws.com/efa": "32", "memory": "1024Gi"}
    assert one["envFrom"] == [{"secretRef": {"name": "all-of-it"}}]
    assert spec["imagePullSecrets"] == [{"name": "registry"}]
    assert spec["nodeSelector"] == EVERYTHING["node_selector"]
    assert [toleration["operator"] for toleration in spec["tolerations"]] == ["Exists", "Equal"]
    assert job_spec(found)["template"]["metadata"]["annotations"] == EVERYTHING["annotations"]
    assert (spec["serviceAccountName"], spec["priorityClassName"]) == ("trainer", "high")
    assert {one["metadata"]["namespace"] for one in found.values()} == {"team"}
    queued = {kind for kind, one in found.items() if "kueue.x-k8s.io/queue-name" in one["metadata"]["labels"]}
    assert queued == {{"jobset": "JobSet", "trainjob": "TrainJob", "job": "Job"}[kind]}


@pytest.mark.parametrize("change", [{"spek": {}}, {"spec": {"replicatedJobs": [{"name": 3}]}}])
def test_the_schemas_find_what_is_wrong_in_a_job_set(change: dict) -> None:
    assert schemas.schema_errors({**objects()["JobSet"], **change}) != []


def test_the_schemas_find_what_is_wrong_in_a_pod_of_a_job_set() -> None:
    found = objects()
    container(found)["volumeMounts"][0]["mountPth"] = "/x"
    assert schemas.schema_errors(found["JobSet"]) != []


@pytest.mark.parametrize("kind", KINDS)
def test_a_pod_runs_without_rights(kind: str) -> None:
    spec = pod(objects(kind=kind))
    assert (spec["securityContext"]["runAsNonRoot"], spec["securityContext"]["runAsUser"]) == (True, 1000)
    assert spec["automountServiceAccountToken"] is False
    assert spec["containers"][0]["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
    assert [volume for volume in spec["volumes"] if "hostPath" in volume] == []


def test_volumes_are_the_claim_memory_for_shm_and_folders_of_the_pods_own() -> None:
    spec = pod(objects())
    volumes = {one["name"]: one for one in spec["volumes"]}
    mounts = {one["mountPath"]: one["name"] for one in spec["containers"][0]["volumeMounts"]}
    assert volumes[mounts["/runs"]]["persistentVolumeClaim"] == {"claimName": "runs"}
    assert volumes[mounts["/dev/shm"]]["emptyDir"] == {"medium": "Memory", "sizeLimit": "16Gi"}
    assert volumes[mounts["/tmp"]]["emptyDir"] == {}


def test_a_claim_that_is_made_stands_in_a_file_of_its_own() -> None:
    """Whoever deletes the job keeps the runs."""
    loaded = open_job_text(JOB % (json.dumps({**PODS, "claim": None, "storage_gib": 7}), ""), file_name="j", folder=Path("/"))
    backend = registry.load_backend("kubernetes")
    assert isinstance(backend, registry.Renders)
    plan = planned(loaded.job, loaded.places)
    files = backend.rendered(loaded.job, plan, RunDir(Path("/x/one")), sealed_texts(loaded.job, loaded.text, plan))
    claim = yaml.safe_load(files["kubernetes/claim.yaml"])
    assert (claim["kind"], claim["spec"]["accessModes"]) == ("PersistentVolumeClaim", ["ReadWriteMany"])
    assert "PersistentVolumeClaim\n" not in files["kubernetes/job.yaml"]


@pytest.mark.parametrize(
    ("kind", "master"),
    [("jobset", "job-1-node-0-0.job-1"), ("trainjob", "job-1-node-0-0.job-1"), ("job", "job-1-0.job-1")],
)
def test_every_pod_has_one_command_and_finds_its_place(kind: str, master: str) -> None:
    found = objects(kind=kind, path="/somewhere/run-7")
    one, spec = container(found), job_spec(found)
    assert one["command"] == [
        *("python3", "-u", "-P", "-m", "launcher", "node", "/runs/job_1/run-7", "--from", "/etc/launcher"),
    ]
    env = {entry["name"]: entry.get("value") for entry in one["env"]}
    assert (env["LAUNCHER_NODES"], env["LAUNCHER_MASTER"]) == ("3", master)
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 3, 3)
    if kind == "job":
        assert (found["Service"]["spec"]["clusterIP"], pod(found)["subdomain"]) == ("None", "job-1")


def test_restarts_count_for_the_whole_and_causes_that_stay_end_it_at_once() -> None:
    whole, plain = objects(restarts=5), objects(restarts=5, kind="job")
    assert whole["JobSet"]["spec"]["failurePolicy"]["maxRestarts"] == 5
    assert whole["JobSet"]["spec"]["failurePolicy"]["rules"][0]["action"] == "FailJobSet"
    assert (job_spec(whole)["backoffLimit"], job_spec(plain)["backoffLimit"]) == (0, 15)
    for found in (whole, plain):
        [rule] = job_spec(found)["podFailurePolicy"]["rules"]
        assert rule["onExitCodes"]["values"] == [2, 3, 4]
        assert pod(found)["restartPolicy"] == "Never"


HOSTILE = [
    "$(HOME)",
    "$$(X)",
    "a: b\\n",
    "it's",
    '"q"',
    "{{ x }}",
    "*a",
    "&a",
    "!!b",
    "on",
    "012",
    "1e3",
    "# no",
    "- x",
    "日本 ü",
]


@pytest.mark.parametrize("value", HOSTILE)
def test_values_of_the_job_arrive_byte_by_byte_and_never_stand_where_kubernetes_fills_in(value: str) -> None:
    found = objects(env=f", env: {{VALUE: {json.dumps(value)}}}")
    arrived = json.loads(found["ConfigMap"]["data"]["job.json"])
    assert arrived["cluster"]["env"] == {"VALUE": value}
    names = {entry["name"] for entry in container(found)["env"]}
    assert names == {"HOME", "USER", "HF_HOME", "LAUNCHER_NODES", "LAUNCHER_MASTER"}
    assert "$(" not in json.dumps(found["JobSet"])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image", "a b"),
        ("image", "x:$(id)"),
        ("image", "x\\ny"),
        ("image", "-x"),
        ("image", "X@sha256:12"),
        ("claim", "../x"),
        ("runs", "/a/$(X)"),
        ("runs", "relative"),
        ("namespace", "a.b"),
        ("queue", "a: b"),
        ("gpu_device", "a/b/c"),
        ("service_account", "A"),
    ],
)
def test_hostile_names_are_refused(field: str, value: str) -> None:
    with pytest.raises(LauncherError) as caught:
        objects(**{field: value})
    assert {problem.code for problem in caught.value.problems} == {"E106"}


def test_a_secret_is_nowhere_but_named() -> None:
    found = objects(secrets={"HF_TOKEN": {"secret": "hf", "key": "token"}})
    [entry] = [entry for entry in container(found)["env"] if entry["name"] == "HF_TOKEN"]
    assert entry == {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hf", "key": "token"}}}
    assert "Secret" not in found


def test_a_nvme_folder_is_one_of_the_pods_own() -> None:
    kubernetes = json.dumps({**PODS, "memory_gib": None, "cpus": None})
    text = (JOB % (kubernetes, ", gpu: h100-80gb")) + "parallel: {zero: 3, offload: {optimizer: nvme, nvme_path: /nvme}}\n"
    mounts = {one["mountPath"] for one in container(objects(text))["volumeMounts"]}
    assert "/nvme" in mounts
