"""KubernetesSpec: what manifests say of pods beside the job itself, and the rules of its fields. ASK, pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from launcher.spec.base import Block, EnvName, ImageName, PlainPath, Text
from launcher.spec.places import FieldPath, Finding

OBJECT = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"
LABEL = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"
# A label's key, an annotation's, or a device: a name, with a domain and a slash before it where it is not Kubernetes' own.
QUALIFIED = r"^([a-z0-9]([a-z0-9.-]*[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?$"
LABEL_VALUE = r"^([A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?)?$"
SECRET_KEY = r"^[A-Za-z0-9._-]+$"

ObjectName = Annotated[str, StringConstraints(pattern=OBJECT, max_length=253)]
LabelName = Annotated[str, StringConstraints(pattern=LABEL, max_length=63)]
QualifiedName = Annotated[str, StringConstraints(pattern=QUALIFIED, max_length=317)]
LabelValue = Annotated[str, StringConstraints(pattern=LABEL_VALUE, max_length=63)]
SecretKeyName = Annotated[str, StringConstraints(pattern=SECRET_KEY, max_length=253)]


class SecretKey(Block):
    """Where a secret lies in the cluster; its value is in no file of ours."""

    secret: ObjectName = Field(description="name of the Secret")
    key: SecretKeyName = Field(description="key in it")


class Toleration(Block):
    """A taint of nodes that pods may be placed on."""

    key: QualifiedName = Field(description="of the taint")
    value: LabelValue | None = Field(None, description="of the taint; None: any")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(None, description="None: all effects")


class KubernetesSpec(Block):
    """Pods, one for each node of the plan. They run as a user without rights, in an image that has this program."""

    kind: Literal["jobset", "trainjob", "job"] = Field(
        "jobset", description="JobSet v1alpha2; TrainJob of Kubeflow Trainer; or a plain Indexed Job with its headless Service"
    )
    image: ImageName = Field(description="with Python and zerolaunch of this version; a digest pins it: name@sha256:…")
    namespace: LabelName | None = Field(None, description="None: that of kubectl's context")
    claim: ObjectName | None = Field(None, description="PersistentVolumeClaim for the runs that is there, ReadWriteMany")
    storage_gib: int | None = Field(None, ge=1, le=10**6, description="size of the claim that is made where none is named")
    storage_class: ObjectName | None = Field(None, description="of the claim that is made; None: the cluster's default")
    runs: PlainPath = Field("/runs", description="where pods see the claim; data of the job may lie on it too")
    cpus: int | None = Field(None, ge=1, le=4096, description="cores of each pod; needed where cluster.gpu is absent")
    memory_gib: int | None = Field(
        None, ge=1, le=10**6, description="of each pod; needed where cluster.gpu is absent, else None: what the plan needs"
    )
    shm_gib: int = Field(16, ge=1, le=10**6, description="of /dev/shm, which counts as memory of the pod")
    gpu_device: QualifiedName = Field("nvidia.com/gpu", description="what the cluster calls its GPUs")
    devices: dict[QualifiedName, Annotated[int, Field(ge=1, le=10_000)]] = Field(
        default_factory=dict, description="further devices of each pod: `rdma/hca: 8`, `vpc.amazonaws.com/efa: 32`"
    )
    secrets: dict[EnvName, SecretKey] = Field(
        default_factory=dict, description="variables from Secrets: `HF_TOKEN: {secret: hugging-face, key: token}`"
    )
    env_from: tuple[ObjectName, ...] = Field((), description="Secrets all of whose keys become variables")
    pull_secrets: tuple[ObjectName, ...] = Field((), description="Secrets for the image's registry")
    queue: ObjectName | None = Field(None, description="Kueue's LocalQueue; None: Kueue is not asked")
    priority: ObjectName | None = Field(None, description="PriorityClass of the pods")
    service_account: ObjectName | None = Field(None, description="None: the namespace's default; its token is not mounted")
    node_selector: dict[QualifiedName, LabelValue] = Field(default_factory=dict, description="labels that nodes must have")
    tolerations: tuple[Toleration, ...] = Field((), description="taints that nodes may have")
    annotations: dict[QualifiedName, Text] = Field(
        default_factory=dict, description="of each pod, such as the networks of an RDMA plugin"
    )
    user: int = Field(1000, ge=1, le=2**31 - 1, description="user and group of the processes, and owner of the claim's files")
    restarts: int = Field(
        3, ge=0, le=1000, description="new attempts after failures, evictions too; each goes on from checkpoints"
    )
    grace_s: int = Field(120, ge=10, le=86_400, description="that a pod gets to end its ranks")
    port: int = Field(29500, ge=1024, le=65_535, description="on which ranks meet in the first pod")


# To a pod's name are added the part of the job and its number: `-node-0-511`; all of it is a DNS label.
POD_NAME, MOST_IN_A_LABEL = "{name}-node-0-{number}", 63
_AT: FieldPath = ("cluster", "kubernetes")


def object_name(job_name: str) -> str:
    """The job's name as objects may have it: a DNS label that begins with a letter, as Services must."""
    name = job_name.replace("_", "-")
    return name if name[0].isalpha() else f"job-{name}"


def findings(kubernetes: KubernetesSpec, *, has_gpu: bool) -> Iterator[Finding]:
    """What its fields say against each other, and against the cluster block around it."""
    yield from _one_claim(kubernetes)
    for name in () if has_gpu else ("cpus", "memory_gib"):
        if getattr(kubernetes, name) is None:
            what = "is missing: without cluster.gpu ranks are CPU processes, and the plan has to know what they get"
            yield Finding(code="E107", path=(*_AT, name), what=what, hint="add it, or `gpu: h100-80gb` to the cluster")


def name_findings(job_name: str, *, nodes: int) -> Iterator[Finding]:
    """Names of pods are labels in the DNS, which are short."""
    name = object_name(job_name)
    longest = POD_NAME.format(name=name, number=nodes - 1)
    yield from too_long(job_name, longest, most=MOST_IN_A_LABEL, of="pods")


def too_long(job_name: str, longest: str, *, most: int, of: str) -> Iterator[Finding]:
    """A finding where the job's name makes `longest` longer than `most` characters."""
    over = len(longest) - most
    if over > 0:
        what = f"{job_name} is too long: {of} would be named {longest}, of which {most} characters are taken"
        hint = f"use at most {len(job_name) - over} characters"
        yield Finding(code="E106", path=("name",), what=what, hint=hint, also=(("cluster", "backend"),))


def _one_claim(kubernetes: KubernetesSpec) -> Iterator[Finding]:
    claim, size, kind = ((*_AT, name) for name in ("claim", "storage_gib", "storage_class"))
    if kubernetes.claim is None and kubernetes.storage_gib is None:
        what = "is missing: pods share the run folder on a volume"
        hint = "name a claim that is there (`claim: runs`), or write `storage_gib: 500` to make one"
        yield Finding(code="E107", path=claim, what=what, hint=hint, also=(size,))
    if kubernetes.claim is None:
        return
    for path in (size, kind):
        if getattr(kubernetes, str(path[-1])) is not None:
            what = "has no effect: the claim that is named has a size and a class of its own"
            yield Finding(code="E115", path=path, what=what, hint="remove it, or claim", also=(claim,))
