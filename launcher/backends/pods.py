"""(job, plan) -> the pod of one node, as a Kubernetes object. Pure; what kind of object starts the pods is kubernetes.py's.

Environment and names of the job's user never stand in a pod: Kubernetes would fill `$(NAME)` in there. They travel in the
ConfigMap, as files. Secrets are named, never written.
"""

from __future__ import annotations

from launcher.backends.joined import block_of, node_argv, node_env
from launcher.backends.request import MASTER, NODES
from launcher.plan.asked import parallel_of
from launcher.plan.plan import Plan
from launcher.rundir.folder import RunDir
from launcher.spec.job import JobSpec
from launcher.spec.kubernetes import KubernetesSpec
from launcher.units import GIB

Json = dict[str, object]
MEANT_EMPTY = ("emptyDir", "torch")

CONTAINER = "node"
SEALED = "/etc/launcher"  # where a pod finds what was rendered
# Path in the run folder -> key of the ConfigMap.
SEALED_KEYS = {"job.yaml": "job.yaml", "job.json": "job.json", "rendered/planned.json": "planned.json"}


def pod(job: JobSpec, plan: Plan, run: RunDir, *, config: str, claim: str, master: str, subdomain: str | None = None) -> Json:
    """A PodTemplateSpec. `config`: the ConfigMap; `claim`: the volume; `master`: DNS name of the first pod."""
    kubernetes = block_of(job)
    assert isinstance(kubernetes, KubernetesSpec)
    spec: Json = {
        "restartPolicy": "Never",
        "subdomain": subdomain,
        "serviceAccountName": kubernetes.service_account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "priorityClassName": kubernetes.priority,
        "terminationGracePeriodSeconds": kubernetes.grace_s,
        "nodeSelector": kubernetes.node_selector,
        "tolerations": [
            {"key": one.key, "operator": "Exists" if one.value is None else "Equal", "value": one.value, "effect": one.effect}
            for one in kubernetes.tolerations
        ],
        "imagePullSecrets": [{"name": name} for name in kubernetes.pull_secrets],
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": kubernetes.user,
            "runAsGroup": kubernetes.user,
            "fsGroup": kubernetes.user,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(job, plan, run, kubernetes, master=master)],
        "volumes": [
            {"name": "runs", "persistentVolumeClaim": {"claimName": claim}},
            {"name": "sealed", "configMap": {"name": config, "items": _items()}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{kubernetes.shm_gib}Gi"}},
            *({"name": name, "emptyDir": {}} for name, _ in _scratch(job)),
        ],
    }
    return without_empty({"metadata": {"annotations": kubernetes.annotations}, "spec": spec})


def _container(job: JobSpec, plan: Plan, run: RunDir, kubernetes: KubernetesSpec, *, master: str) -> Json:
    env = {**node_env(job), NODES: str(plan.machine.nodes), MASTER: master}
    secret = {name: {"secretKeyRef": {"name": one.secret, "key": one.key}} for name, one in sorted(kubernetes.secrets.items())}
    return {
        "name": CONTAINER,
        "image": kubernetes.image,
        "command": node_argv(job, run, SEALED),
        "env": [
            *({"name": name, "value": value} for name, value in sorted(env.items())),
            *({"name": name, "valueFrom": source} for name, source in secret.items()),
        ],
        "envFrom": [{"secretRef": {"name": name}} for name in kubernetes.env_from],
        "ports": [{"name": "ranks", "containerPort": kubernetes.port}],
        "resources": _resources(plan, kubernetes),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "runs", "mountPath": kubernetes.runs},
            {"name": "sealed", "mountPath": SEALED, "readOnly": True},
            {"name": "shm", "mountPath": "/dev/shm"},
            *({"name": name, "mountPath": path} for name, path in _scratch(job)),
        ],
    }


def _resources(plan: Plan, kubernetes: KubernetesSpec) -> Json:
    """Devices must be limits. Memory is a limit where the job tells it, else what the plan needs is asked for."""
    machine = plan.machine
    devices = {**kubernetes.devices, **({kubernetes.gpu_device: machine.slots} if machine.device == "cuda" else {})}
    limits = {name: str(count) for name, count in devices.items()}
    requests = {"cpu": str(kubernetes.cpus)} if kubernetes.cpus else {}
    if kubernetes.memory_gib:
        limits["memory"] = f"{kubernetes.memory_gib}Gi"
    else:
        host_bytes = max(stage.memory.host_peak_bytes or 0 for stage in plan.stages) * machine.slots
        requests["memory"] = f"{-(-host_bytes // GIB) + 1}Gi"
    return {"requests": {**requests, **limits}, "limits": limits}


def _items() -> list[Json]:
    """Keys of a ConfigMap are plain names; in the pod they lie as in a run folder."""
    return [{"key": key, "path": path} for path, key in SEALED_KEYS.items()]


def _scratch(job: JobSpec) -> list[tuple[str, str]]:
    """Folders of the pod's own: /tmp, and where a stage offloads to NVMe."""
    asked = (parallel_of(job, stage) for stage in job.stages)
    paths = sorted({one.nvme_path for one in asked if one.nvme_path})
    return [("tmp", "/tmp"), *((f"nvme{number}", path) for number, path in enumerate(paths))]


def without_empty(value: Json) -> Json:
    """Without keys that say nothing: null, empty lists and mappings, but for those that mean something when empty."""
    kept = {key: without_empty(one) if isinstance(one, dict) else _of_list(one) for key, one in value.items()}
    return {key: one for key, one in kept.items() if one not in (None, [], {}) or key in MEANT_EMPTY}


def _of_list(value: object) -> object:
    return [without_empty(one) if isinstance(one, dict) else one for one in value] if isinstance(value, list) else value
