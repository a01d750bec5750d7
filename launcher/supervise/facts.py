"""(job, this machine) -> Machine and ModelShape, the planner's two arguments. DO, only looking; torch is never imported."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from launcher.backends.registry import load_hub
from launcher.errors import LauncherError, Problem
from launcher.hosts.machine.capacity import free_disk_bytes, total_memory_bytes, usable_cores
from launcher.hosts.machine.gpus import find_gpus
from launcher.hosts.machine.networks import network_gbs
from launcher.plan.away import coming_machine
from launcher.plan.known_shapes import KNOWN_CONFIGS
from launcher.plan.plan import Machine
from launcher.plan.shape import Config, ModelShape, is_known, shape_from_config, shape_of_new
from launcher.rundir.folder import read_json
from launcher.spec.cluster import COMING, RENDERED, ClusterSpec
from launcher.spec.hosts import ClusterHost, hosts_of
from launcher.spec.job import JobSpec
from launcher.spec.model import NewTokenizer
from launcher.supervise.blueprints import Unknown
from launcher.supervise.hostfile import local_slots
from launcher.supervise.machines import gpu_machine

MOST_CPU_RANKS_BY_DEFAULT = 2


Remote = Callable[[ClusterSpec], Machine]
NOT_ASKED = "E423"


def hosts_not_asked(cluster: ClusterSpec) -> Machine:
    """LauncherError E423: a command that starts no process knows nothing of other hosts."""
    what = f"backend {cluster.backend}: its hosts are not asked by this command"
    hint = "`launcher plan` asks them; or plan away from them with cluster.gpu"
    raise LauncherError(Problem(code=NOT_ASKED, where="cluster.backend", what=what, hint=hint))


def detect_machine(
    job: JobSpec,
    *,
    runs_root: Path,
    written_bytes: int = 0,
    environ: Mapping[str, str] = os.environ,
    remote: Remote = hosts_not_asked,
) -> Machine:
    """The machine with the ranks that the job asks of it. Errors as in machine_here."""
    return machine_here(job.cluster, runs_root=runs_root, written_bytes=written_bytes, environ=environ, remote=remote)


def machine_here(
    cluster: ClusterSpec,
    *,
    runs_root: Path,
    written_bytes: int = 0,
    environ: Mapping[str, str] = os.environ,
    remote: Remote = hosts_not_asked,
) -> Machine:
    """This machine, the hosts of backend ssh as `remote` tells them, or the nodes that the job tells, with the ranks that the
    cluster block asks for. The hosts of backend mpi are taken to be as this machine is, where the job does not name their GPU.

    LauncherError E401, E402, E403, E410, and those of `remote`. What a run has already written of its plan (`written_bytes`)
    counts as free.
    """
    if cluster.backend == "ssh":
        return remote(cluster)
    if cluster.backend in RENDERED:
        raise LauncherError(_not_from_here(cluster.backend))
    if tells_its_nodes(cluster):
        return coming_nodes(cluster)
    gpus, hosts = find_gpus(environ), mpi_hosts(cluster)
    asked = len(hosts[0].devices) if hosts else asked_slots(cluster, num_gpus=len(gpus))
    if hosts and gpus and asked > len(gpus):
        raise LauncherError(_too_many(asked, f"this machine has {len(gpus)} GPUs, and stands for all hosts", len(gpus)))
    disk_bytes = free_disk_bytes(runs_root) + written_bytes
    memory_bytes, cores = total_memory_bytes(), usable_cores()
    names = tuple(host.host for host in hosts)
    if not gpus:
        return Machine.of_cpus(
            slots=asked,
            memory_bytes=memory_bytes,
            cores=cores,
            disk_free_bytes=disk_bytes,
            nodes=len(names) or 1,
            hosts=names,
        )
    return gpu_machine(
        gpus[:asked],
        devices=tuple(gpu.number for gpu in gpus[:asked]),
        host_memory_bytes=memory_bytes,
        disk_free_bytes=disk_bytes,
        cores=cores,
        network_gbs=network_gbs(),
        hosts=names,
    )


def tells_its_nodes(cluster: ClusterSpec) -> bool:
    """Whether the job itself says what its nodes are: they come by themselves, and nobody can look at them before."""
    return cluster.backend in COMING and (cluster.backend != "mpi" or cluster.gpu is not None)


def coming_nodes(cluster: ClusterSpec) -> Machine:
    """Those nodes. LauncherError E216 for a GPU nobody knows, E403 for hosts that differ."""
    hosts = mpi_hosts(cluster)
    if not hosts:
        return coming_machine(cluster)
    told = cluster.model_copy(update={"slots": len(hosts[0].devices), "nodes": len(hosts)})
    return replace(coming_machine(told), hosts=tuple(host.host for host in hosts))


def mpi_hosts(cluster: ClusterSpec) -> tuple[ClusterHost, ...]:
    """The hosts of backend mpi, which take slots 0, 1, …: mpirun knows their names alone. LauncherError E403."""
    hosts = hosts_of(cluster) if cluster.backend == "mpi" else ()
    odd = next((host for host in hosts if host.devices != tuple(range(len(hosts[0].devices)))), None)
    if odd is not None:
        what = f"{odd.host} takes slots {','.join(map(str, odd.devices))}: mpirun starts all hosts alike, from 0 on"
        raise LauncherError(Problem(code="E403", where=odd.where, what=what, hint="give all hosts as many slots"))
    return hosts


def _not_from_here(backend: str) -> Problem:
    what = f"ranks of backend {backend} are not started from here: its own commands start the nodes"
    start = {"kubernetes": "kubectl apply", "skypilot": "sky jobs launch", "dstack": "dstack apply"}[backend]
    hint = f"`launcher render JOB -o DIR` writes what `{start}` takes"
    return Problem(code="E401", where="cluster.backend", what=what, hint=hint)


def asked_slots(cluster: ClusterSpec, *, num_gpus: int) -> int:
    """Ranks on this machine: cluster.slots, the hostfile, or what there is. LauncherError E402 where they cannot be had."""
    listed = local_slots(Path(cluster.hostfile)) if cluster.hostfile else None
    if cluster.slots and listed and cluster.slots > listed:
        raise LauncherError(_too_many(cluster.slots, f"the hostfile lists {listed} slots for this machine", listed))
    asked = cluster.slots or listed or num_gpus or min(MOST_CPU_RANKS_BY_DEFAULT, usable_cores())
    if num_gpus and asked > num_gpus:
        raise LauncherError(_too_many(asked, f"{num_gpus} GPUs can be used here", num_gpus))
    return asked


def _too_many(asked: int, have: str, most: int) -> Problem:
    hint = f"set cluster.slots to {most} or leave it out; CUDA_VISIBLE_DEVICES= (empty) trains on the CPU"
    return Problem(code="E402", where="cluster.slots", what=f"{asked} ranks are asked for, but {have}", hint=hint)


def _refused(config: Config, file: str) -> ModelShape:
    """LauncherError E212: the tables do not have the family."""
    return shape_from_config(config, file=file)


def find_shape(job: JobSpec, unknown: Unknown = _refused) -> ModelShape:
    """From model.new, a folder, the table of well-known models, or the hub. `unknown`: for a family that no table has.

    LauncherError E408 and E411 for a file that is not there, E213 for one that is broken, and those of the shape.
    """
    model = job.model
    if model.new is not None:
        return shape_of_new(model.new, _vocab(model.tokenizer))
    assert model.source is not None  # spec: one of the two
    if model.source in KNOWN_CONFIGS and model.revision is None:
        return shape_from_config(KNOWN_CONFIGS[model.source], file=model.source)
    config, place = _json_of(model.source, "config.json", model.revision, field="model.source")
    return shape_from_config(config, file=place) if is_known(config) else unknown(config, place)


def _vocab(tokenizer: str | NewTokenizer | None) -> int:
    """Entries of the tokenizer that a new model is drawn for."""
    if isinstance(tokenizer, NewTokenizer):
        return tokenizer.train.vocab
    assert tokenizer is not None  # spec: a new model needs a tokenizer
    value, place = _json_of(tokenizer, "tokenizer.json", None, field="model.tokenizer")
    vocab, added = _at(value, "model", "vocab"), _at(value, "added_tokens")
    if not isinstance(vocab, dict | list) or not vocab:
        raise LauncherError(Problem(code="E213", where=place, what="holds no vocabulary", hint="choose another tokenizer"))
    ids = [int(token["id"]) for token in added] if isinstance(added, list) else []
    return max([len(vocab) - 1, *ids]) + 1


def _at(value: object, *keys: str) -> object:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def is_local(source: str) -> bool:
    """Local paths are absolute once a job is loaded (spec/paths.py); anything else is a hub id."""
    return source.startswith("/")


def _json_of(source: str, name: str, revision: str | None, *, field: str) -> tuple[dict[str, object], str]:
    if not is_local(source):
        return load_hub().fetch_json(source, name, revision), f"hub:{source}/{name}"
    path = Path(source) / name
    if not path.parent.is_dir():
        what = f"{field}: {source} is no folder"
        raise LauncherError(Problem(code="E408", where=str(path.parent), what=what, hint="check the path"))
    try:
        return read_json(path), str(path)
    except OSError as error:
        code, what = "E411", f"{field}: {name} cannot be read: {error.strerror}"
    except ValueError as error:
        code, what = "E213", f"{field}: {name} is not a JSON object: {str(error).partition(chr(10))[0]}"
    hint = "name a folder as `save_pretrained` writes it"
    raise LauncherError(Problem(code=code, where=str(path), what=what, hint=hint))
