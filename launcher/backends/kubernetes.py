"""(job, plan, run folder) -> manifests for Kubernetes: a claim, a ConfigMap, and what starts the pods of three kinds. Pure.

    kubernetes/claim.yaml   the volume of the runs, where the job has it made; apart, so that deleting the job keeps the runs
    kubernetes/job.yaml     ConfigMap, and JobSet | TrainingRuntime and TrainJob | Service and Job

Every failure of one pod ends the attempt of all, and all are started anew: the run goes on from what was finished, and its
unfinished stage from a checkpoint. Exit codes 2, 3 and 4 end the job at once, because no new attempt would mend their cause.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from launcher.backends import joined
from launcher.backends.manifest import yaml_text
from launcher.backends.pods import CONTAINER, SEALED_KEYS, Json, pod, without_empty
from launcher.errors import EXIT_CLUSTER, EXIT_NO_PLAN, EXIT_USAGE
from launcher.plan.plan import Plan
from launcher.rundir.folder import RunDir
from launcher.spec.job import JobSpec
from launcher.spec.kubernetes import POD_NAME, KubernetesSpec, object_name

find_problems = joined.find_problems
prepare_request = joined.prepare_request
stage_request = joined.stage_request
fleet_order = joined.fleet_order
hostfile_text = joined.hostfile_text

FOLDER, CLAIM_FILE, JOB_FILE = "kubernetes", "claim.yaml", "job.yaml"
FINAL = [EXIT_USAGE, EXIT_NO_PLAN, EXIT_CLUSTER]
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
TRAINER_LABEL = "trainer.kubeflow.org/trainjob-ancestor-step"


def rendered(job: JobSpec, plan: Plan, run: RunDir, sealed: Mapping[str, str]) -> dict[str, str]:
    """Name below rendered/ -> text."""
    kubernetes = _block(job)
    head = f"Job {job.name}: kubectl apply -f this folder. {joined.VERSIONED}"
    files = {f"{FOLDER}/{JOB_FILE}": yaml_text([_config(job, sealed), *_objects(job, plan, run)], head=head)}
    if kubernetes.claim is None:
        files[f"{FOLDER}/{CLAIM_FILE}"] = yaml_text([_claim(job)], head="The runs: deleting this deletes them.")
    return files


def next_step(job: JobSpec, run: RunDir) -> str:
    namespace = _block(job).namespace
    words = ["kubectl", *(["--namespace", namespace] if namespace else []), "apply", "-f", str(run.rendered / FOLDER)]
    return shlex.join(words)


def _objects(job: JobSpec, plan: Plan, run: RunDir) -> list[Json]:
    kinds = {"jobset": _job_set, "trainjob": _train_job, "job": _plain_job}
    return kinds[_block(job).kind](job, plan, run)


def _job_set(job: JobSpec, plan: Plan, run: RunDir) -> list[Json]:
    return [_object(job, "jobset.x-k8s.io/v1alpha2", "JobSet", queued=True, spec=_set_spec(job, plan, run))]


def _train_job(job: JobSpec, plan: Plan, run: RunDir) -> list[Json]:
    """A runtime of the job's own, because pods hold more than a TrainJob can say; Trainer tells pods their place in PET_*."""
    api, name = "trainer.kubeflow.org/v1alpha1", object_name(job.name)
    policy = {"numNodes": plan.machine.nodes, "torch": {}}
    runtime = {"mlPolicy": policy, "template": {"spec": _set_spec(job, plan, run, labels={TRAINER_LABEL: "trainer"})}}
    trainer = {"numNodes": plan.machine.nodes, "numProcPerNode": plan.machine.slots}
    ref = {"apiGroup": api.partition("/")[0], "kind": "TrainingRuntime", "name": name}
    return [
        _object(job, api, "TrainingRuntime", spec=runtime),
        _object(job, api, "TrainJob", queued=True, spec={"runtimeRef": ref, "trainer": trainer}),
    ]


def _plain_job(job: JobSpec, plan: Plan, run: RunDir) -> list[Json]:
    """Pods of a failed attempt fail one by one, and each counts."""
    name, nodes = object_name(job.name), plan.machine.nodes
    service = {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": {"batch.kubernetes.io/job-name": name},
        "ports": [{"name": "ranks", "port": _block(job).port}],
    }
    spec = _job_spec(job, plan, run, master=f"{name}-0.{name}", backoff=_block(job).restarts * nodes, subdomain=name)
    return [_object(job, "v1", "Service", spec=service), _object(job, "batch/v1", "Job", queued=True, spec=spec)]


def _set_spec(job: JobSpec, plan: Plan, run: RunDir, *, labels: Mapping[str, str] | None = None) -> Json:
    """Of a JobSet with one Job, whose pods are the nodes. A pod that fails fails the Job, and that starts all of them anew."""
    name = object_name(job.name)
    master = f"{POD_NAME.format(name=name, number=0)}.{name}"
    template = {"metadata": {"labels": dict(labels or {})}, "spec": _job_spec(job, plan, run, master=master, backoff=0)}
    return {
        "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
        "failurePolicy": {
            "maxRestarts": _block(job).restarts,
            "rules": [{"name": "final", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
        },
        "replicatedJobs": [{"name": CONTAINER, "replicas": 1, "template": template}],
    }


def _job_spec(job: JobSpec, plan: Plan, run: RunDir, *, master: str, backoff: int, subdomain: str | None = None) -> Json:
    """One pod a node, each with its number."""
    name, nodes = object_name(job.name), plan.machine.nodes
    final = {"action": "FailJob", "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": FINAL}}
    claim = _block(job).claim or f"{name}-runs"
    return {
        "completionMode": "Indexed",
        "completions": nodes,
        "parallelism": nodes,
        "backoffLimit": backoff,
        "podReplacementPolicy": "Failed",  # never two node 0 at once
        "podFailurePolicy": {"rules": [final]},
        "template": pod(job, plan, run, config=_config_name(job), claim=claim, master=master, subdomain=subdomain),
    }


def _claim(job: JobSpec) -> Json:
    kubernetes = _block(job)
    spec = {
        "accessModes": ["ReadWriteMany"],
        "storageClassName": kubernetes.storage_class,
        "resources": {"requests": {"storage": f"{kubernetes.storage_gib}Gi"}},
    }
    return _object(job, "v1", "PersistentVolumeClaim", name=f"{object_name(job.name)}-runs", spec=spec)


def _config(job: JobSpec, sealed: Mapping[str, str]) -> Json:
    data = {key: sealed[path] for path, key in SEALED_KEYS.items()}
    return _object(job, "v1", "ConfigMap", name=_config_name(job), data=data)


def _config_name(job: JobSpec) -> str:
    return f"{object_name(job.name)}-sealed"


def _object(job: JobSpec, api: str, kind: str, *, name: str = "", queued: bool = False, **parts: Mapping[str, object]) -> Json:
    kubernetes = _block(job)
    labels = {"app.kubernetes.io/name": object_name(job.name), "app.kubernetes.io/managed-by": "zerolaunch"}
    if queued and kubernetes.queue:
        labels[QUEUE_LABEL] = kubernetes.queue
    metadata = {"name": name or object_name(job.name), "namespace": kubernetes.namespace, "labels": labels}
    return {"apiVersion": api, "kind": kind, **without_empty({"metadata": metadata, **parts})}


def _block(job: JobSpec) -> KubernetesSpec:
    assert job.cluster.kubernetes is not None  # spec: the backend needs it
    return job.cluster.kubernetes
