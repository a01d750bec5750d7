"""ClusterSpec: where a job runs, and the rules that its fields have among themselves. ASK, pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from launcher.spec.base import Auto, Block, EnvName, Text
from launcher.spec.gpu import WITHOUT_BF16, GpuSpec
from launcher.spec.hostfile import HOST
from launcher.spec.places import FieldPath, Finding

# A name, or an IPv4 address; what begins with a dash would be an option of ssh. IPv6 addresses stand in hostfiles.
HostName = Annotated[str, StringConstraints(pattern=f"^{HOST}$")]
# Part of the fixed command that ssh hands to a login shell: nothing in it may mean anything to a shell.
PlainPath = Annotated[str, StringConstraints(pattern=r"^/[A-Za-z0-9_./+-]+$", max_length=1024)]


class ClusterSpec(Block):
    """Where the job runs."""

    backend: Literal["local", "ssh", "slurm", "kubernetes", "mpi"] = Field("local", description="how ranks are started")
    hostfile: Text | None = Field(
        None, description="DeepSpeed hostfile, `host slots=8` a line; for ssh needed, for local only this machine"
    )
    hosts: tuple[HostName, ...] = Field((), description="names of the hosts, each with `slots` ranks, instead of a hostfile")
    include: Text | None = Field(None, description="only these hosts and slots: `worker-1@worker-2:0,2`")
    exclude: Text | None = Field(None, description="not these hosts and slots: `worker-1:0`")
    python: PlainPath | None = Field(
        None, description="Python on the hosts, of backend ssh; None: the path of the one that runs here"
    )
    ssh_config: Text | None = Field(None, description="OpenSSH client configuration for backend ssh; None: ~/.ssh/config")
    secrets: tuple[EnvName, ...] = Field(
        (), description="variables of this shell that ranks on other hosts get too; their values are in no file"
    )
    slots: Annotated[int | None, Auto] = Field(
        None, ge=1, le=1024, description="ranks on this machine; None: its GPUs, or one CPU process for each core, at most 2"
    )
    nodes: int | None = Field(
        None, ge=1, le=100_000, description="hosts, each with `slots` ranks, to plan away from the cluster; None: one"
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


_REMOTE = frozenset(("ssh",))
_OF_REMOTE = ("hosts", "include", "exclude", "python", "ssh_config", "secrets")


def hosts_are_named(cluster: ClusterSpec) -> Iterator[Finding]:
    """A backend that reaches other hosts needs their names; one that does not has no use for what belongs to them."""
    if cluster.backend in _REMOTE and not (cluster.hostfile or cluster.hosts) and cluster.gpu is None:
        hint = "add `hostfile: hosts`, a file with one `host slots=8` a line, or `hosts: [node1, node2]` and `slots: 8`"
        what = f"is missing: backend {cluster.backend} needs the names of its hosts"
        yield Finding(code="E107", path=("cluster", "hostfile"), what=what, hint=hint, also=(("cluster", "backend"),))
    if cluster.hosts and cluster.hostfile:
        also = (("cluster", "hostfile"),)
        what = "hosts and hostfile are both given"
        yield Finding(code="E109", path=("cluster", "hosts"), what=what, hint="keep one of the two", also=also)
    if cluster.include and cluster.exclude:
        also = (("cluster", "include"),)
        what = "include and exclude are both given, and DeepSpeed takes one of them"
        yield Finding(code="E109", path=("cluster", "exclude"), what=what, hint="keep one of the two", also=also)
    for index, host in enumerate(cluster.hosts):
        if host.lower() in (other.lower() for other in cluster.hosts[:index]):
            what = f"{host} stands twice"
            yield Finding(code="E109", path=("cluster", "hosts", index), what=what, hint="name each host once")
    if cluster.backend == "local":
        for name in _OF_REMOTE:
            if getattr(cluster, name):
                what = "has no effect: backend local starts ranks on this machine, with this Python and this environment"
                also = (("cluster", "backend"),)
                yield Finding(code="E115", path=("cluster", name), what=what, hint="remove it, or use backend: ssh", also=also)


def secrets_are_told_once(cluster: ClusterSpec) -> Iterator[Finding]:
    for index, name in enumerate(cluster.secrets):
        path: FieldPath = ("cluster", "secrets", index)
        if name in cluster.env:
            also = (("cluster", "env", name),)
            yield Finding(code="E109", path=path, what=f"{name} is also in cluster.env", hint="keep one of the two", also=also)
        elif re.fullmatch(_TAKES_OVER, name):
            what = "may not be set from a job file: it changes which code every process runs"
            yield Finding(code="E118", path=path, what=what, hint="set it on the hosts if it is needed")


def findings(cluster: ClusterSpec) -> Iterator[Finding]:
    for rule in (one_count_of_slots, numbers_of_a_gpu_agree, environment_is_harmless, hosts_are_named, secrets_are_told_once):
        yield from rule(cluster)
