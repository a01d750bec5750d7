"""ClusterSpec: where a job runs, and the rules that its fields have among themselves. ASK, pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from launcher.spec.base import Auto, Block, EnvName, PlainPath, Text
from launcher.spec.cloud import CloudSpec
from launcher.spec.gpu import WITHOUT_BF16, GpuSpec
from launcher.spec.hostfile import HOST
from launcher.spec.kubernetes import KubernetesSpec
from launcher.spec.kubernetes import findings as kubernetes_findings
from launcher.spec.places import FieldPath, Finding
from launcher.spec.slurm import SlurmSpec
from launcher.spec.slurm import findings as slurm_findings

# A name, or an IPv4 address; what begins with a dash would be an option of ssh. IPv6 addresses stand in hostfiles.
HostName = Annotated[str, StringConstraints(pattern=f"^{HOST}$")]


class ClusterSpec(Block):
    """Where the job runs."""

    backend: Literal["local", "ssh", "slurm", "kubernetes", "mpi", "skypilot", "dstack"] = Field(
        "local",
        description="how ranks are started; slurm: by sbatch, or srun inside an allocation; mpi: by Open MPI's mpirun;"
        " kubernetes, skypilot and dstack: from what `launcher render` writes",
    )
    hostfile: Text | None = Field(
        None, description="DeepSpeed hostfile, `host slots=8` a line; for ssh and mpi needed, for local only this machine"
    )
    hosts: tuple[HostName, ...] = Field((), description="names of the hosts, each with `slots` ranks, instead of a hostfile")
    include: Text | None = Field(None, description="only these hosts and slots: `worker-1@worker-2:0,2`")
    exclude: Text | None = Field(None, description="not these hosts and slots: `worker-1:0`")
    python: PlainPath | None = Field(
        None, description="Python on other hosts; None: the path of the one that runs here, in images python3"
    )
    ssh_config: Text | None = Field(None, description="OpenSSH client configuration for backend ssh; None: ~/.ssh/config")
    secrets: tuple[EnvName, ...] = Field(
        (),
        description="variables of this shell that ranks on other hosts get too; the run folder has no values, but SLURM keeps"
        " all of the shell's environment in a file of its own until the job is over",
    )
    slurm: SlurmSpec | None = Field(None, description="a job of SLURM, of backend slurm")
    kubernetes: KubernetesSpec | None = Field(None, description="pods, of backend kubernetes")
    cloud: CloudSpec | None = Field(None, description="nodes that are rented, of backends skypilot and dstack")
    slots: Annotated[int | None, Auto] = Field(
        None, ge=1, le=1024, description="ranks on this machine; None: its GPUs, or one CPU process for each core, at most 2"
    )
    nodes: int | None = Field(
        None, ge=1, le=100_000, description="hosts, each with `slots` ranks: of a scheduler, or to plan away; None: one"
    )
    gpu: Text | GpuSpec | None = Field(
        None, description="GPU name of the catalogue, or its numbers, to plan away from the cluster"
    )
    prices: Text | None = Field(None, description="YAML file with prices, power and carbon; None: the catalogue's and means")
    env: dict[EnvName, Text] = Field(default_factory=dict, description="environment of every rank; not for secrets")


# Variables that make every process run foreign code or find foreign files.
_TAKES_OVER = "LD_PRELOAD|LD_AUDIT|PYTHONSTARTUP|PYTHONHOME|PYTHONINSPECT|BASH_ENV|ENV|IFS|PERL5OPT|NODE_OPTIONS|PATH|GIT_SSH.*"
_SECRET = "(?i).*(TOKEN|PASSWORD|PASSWD|SECRET|API_?KEY|ACCESS_KEY|CREDENTIALS?)(_?ID)?|.*_PAT"
_NO_SECRET = frozenset({"TOKENIZERS_PARALLELISM"})


def one_count_of_slots(cluster: ClusterSpec) -> Iterator[Finding]:
    if cluster.hostfile and cluster.slots:
        what = "slots and hostfile are both given, each says how many ranks there are"
        path: FieldPath = ("cluster", "slots")
        yield Finding(code="E109", path=path, what=what, hint="keep one of the two", also=(("cluster", "hostfile"),))


def numbers_of_a_gpu_agree(cluster: ClusterSpec) -> Iterator[Finding]:
    gpu, path = cluster.gpu, ("cluster", "gpu")
    if not isinstance(gpu, GpuSpec):
        return
    gbs, gpus = (*path, "nvlink_gbs"), (*path, "nvlink_gpus")
    if gpu.nvlink_gpus and not gpu.nvlink_gbs:
        what = "has no effect: without nvlink_gbs peers are reached over PCIe"
        yield Finding(code="E115", path=gpus, what=what, hint="add `nvlink_gbs: 450`, or remove it", also=(gbs,))
    if gpu.nvlink_gbs and not gpu.nvlink_gpus:
        what = "is missing: nvlink_gbs does not say how many GPUs it joins"
        yield Finding(code="E107", path=gpus, what=what, hint="add `nvlink_gpus: 8`, or remove nvlink_gbs", also=(gbs,))
    if gpu.bf16 and gpu.generation in WITHOUT_BF16:
        what = f"true beside generation {gpu.generation}, which has no bf16"
        also = ((*path, "generation"),)
        yield Finding(code="E109", path=(*path, "bf16"), what=what, hint="remove one of the two", also=also)


def environment_is_harmless(cluster: ClusterSpec) -> Iterator[Finding]:
    for name in cluster.env:
        path = ("cluster", "env", name)
        if re.fullmatch(_TAKES_OVER, name):
            what = "may not be set from a job file: it changes which code every process runs"
            yield Finding(code="E118", path=path, what=what, hint="set it in the shell of the machine if it is needed")
        elif re.fullmatch(_SECRET, name) and name not in _NO_SECRET:
            what = "looks like a secret, and the run folder keeps the job file"
            hint = f"remove it and run `export {name}=…` in the shell: ranks inherit it"
            yield Finding(code="E118", path=path, what=what, hint=hint)


RENDERED = ("kubernetes", "skypilot", "dstack")  # their own commands start what `render` wrote
STARTED = ("slurm", "mpi")  # `run` has the nodes started, by a scheduler's program
COMING = (*STARTED, *RENDERED)  # nodes that come by themselves, each with the same command
# Fields that not every backend has a use for.
_MEANT_FOR: dict[str, tuple[str, ...]] = {
    "hostfile": ("local", "ssh", "mpi"),
    **dict.fromkeys(("hosts", "include", "exclude"), ("ssh", "mpi")),
    "python": ("ssh", *COMING),
    "ssh_config": ("ssh",),
    "secrets": ("ssh", "slurm", "mpi", "skypilot", "dstack"),
    "slurm": ("slurm",),
    "kubernetes": ("kubernetes",),
    "cloud": ("skypilot", "dstack"),
}


def hosts_are_named(cluster: ClusterSpec) -> Iterator[Finding]:
    """A backend that reaches other hosts needs their names; one that does not has no use for what belongs to them."""
    named = cluster.hostfile or cluster.hosts
    if not named and (cluster.backend == "mpi" or (cluster.backend == "ssh" and cluster.gpu is None)):
        hint = "add `hostfile: hosts`, a file with one `host slots=8` a line, or `hosts: [node1, node2]` and `slots: 8`"
        what = f"is missing: backend {cluster.backend} needs the names of its hosts"
        yield Finding(code="E107", path=("cluster", "hostfile"), what=what, hint=hint, also=(("cluster", "backend"),))
    if cluster.hosts and cluster.hostfile:
        also = (("cluster", "hostfile"),)
        what = "hosts and hostfile are both given"
        yield Finding(code="E109", path=("cluster", "hosts"), what=what, hint="keep one of the two", also=also)
    if cluster.nodes and named and cluster.backend in ("ssh", "mpi"):
        by = "hosts" if cluster.hosts else "hostfile"
        what = f"has no effect: {by} says which hosts there are"
        yield Finding(code="E115", path=("cluster", "nodes"), what=what, hint="remove it", also=(("cluster", by),))
    if cluster.include and cluster.exclude:
        also = (("cluster", "include"),)
        what = "include and exclude are both given, and DeepSpeed takes one of them"
        yield Finding(code="E109", path=("cluster", "exclude"), what=what, hint="keep one of the two", also=also)
    for index, host in enumerate(cluster.hosts):
        if host.lower() in (other.lower() for other in cluster.hosts[:index]):
            what = f"{host} stands twice"
            yield Finding(code="E109", path=("cluster", "hosts", index), what=what, hint="name each host once")


def fields_have_effect(cluster: ClusterSpec) -> Iterator[Finding]:
    for name, backends in _MEANT_FOR.items():
        if cluster.backend in backends or not getattr(cluster, name):
            continue
        what = f"has no effect with backend {cluster.backend}"
        hint = f"remove it, or use backend: {backends[0]}"
        if cluster.backend == "local":
            what = "has no effect: backend local starts ranks on this machine, with this Python and this environment"
        elif name == "secrets":
            hint = "name their Secrets in cluster.kubernetes.secrets"
        yield Finding(code="E115", path=("cluster", name), what=what, hint=hint, also=(("cluster", "backend"),))


def nodes_that_come_are_told(cluster: ClusterSpec) -> Iterator[Finding]:
    """What nodes are planned for from elsewhere has to be in the job: nobody can look at them."""
    also: tuple[FieldPath, ...] = (("cluster", "backend"),)
    block, example = ("kubernetes", "{image: …, claim: runs}") if cluster.backend == "kubernetes" else ("cloud", "{image: …}")
    if cluster.backend in RENDERED and getattr(cluster, block) is None:
        what = f"is missing: it tells the image that backend {cluster.backend} starts"
        yield Finding(code="E107", path=("cluster", block), what=what, hint=f"add `{block}: {example}`", also=also)
    if cluster.backend in RENDERED and cluster.gpu is None and block == "cloud":
        what = f"is missing: backend {cluster.backend} rents nodes by their GPU"
        hint = "add `gpu: h100-80gb` and `slots: 8`"
        yield Finding(code="E107", path=("cluster", "gpu"), what=what, hint=hint, also=also)
    if cluster.backend == "kubernetes" and cluster.kubernetes is not None:
        yield from kubernetes_findings(cluster.kubernetes, has_gpu=cluster.gpu is not None)
    if cluster.backend == "slurm":
        yield from slurm_findings(cluster.slurm, has_gpu=cluster.gpu is not None)


def secrets_are_told_once(cluster: ClusterSpec) -> Iterator[Finding]:
    names: list[tuple[FieldPath, str]] = [(("cluster", "secrets", index), name) for index, name in enumerate(cluster.secrets)]
    if cluster.kubernetes is not None:
        names += [(("cluster", "kubernetes", "secrets", name), name) for name in cluster.kubernetes.secrets]
    for path, name in names:
        if name in cluster.env:
            also = (("cluster", "env", name),)
            yield Finding(code="E109", path=path, what=f"{name} is also in cluster.env", hint="keep one of the two", also=also)
        elif re.fullmatch(_TAKES_OVER, name):
            what = "may not be set from a job file: it changes which code every process runs"
            yield Finding(code="E118", path=path, what=what, hint="set it on the hosts if it is needed")


RULES = (
    one_count_of_slots,
    numbers_of_a_gpu_agree,
    environment_is_harmless,
    hosts_are_named,
    fields_have_effect,
    nodes_that_come_are_told,
    secrets_are_told_once,
)


def findings(cluster: ClusterSpec) -> Iterator[Finding]:
    for rule in RULES:
        yield from rule(cluster)
