"""`python -m launcher.cli.goldens [ROOT]`: rewrite every file that is made from code; `make goldens` calls it.

Not a command of `launcher`. Plans are made for fixed machines, so that the texts are the same everywhere. Tests compare whole
files with `golden_texts`, and never write them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from launcher.backends.registry import Renders, load_backend
from launcher.cli.docs import doc_texts
from launcher.dsconfig.render import ds_config
from launcher.plan.away import away_machine
from launcher.plan.explain import plan_text
from launcher.plan.make import make_plan
from launcher.plan.plan import Machine, Plan
from launcher.rundir.folder import RunDir, write_atomic
from launcher.spec.job import JobSpec
from launcher.spec.load import open_job
from launcher.supervise.facts import coming_nodes, find_shape, tells_its_nodes
from launcher.supervise.sealed import SEALED_FILES
from launcher.units import GIB

# Where a job names no GPU: a small machine with two CPU processes.
SMALL_MACHINE = Machine(
    device="cpu",
    slots=2,
    gpu=None,
    memory_bytes=8 * GIB,
    host_memory_bytes=16 * GIB,
    disk_free_bytes=None,
    cores=2,
    bf16=True,
    fp16=False,
)


def golden_texts(root: Path) -> dict[str, str]:
    """Path below `root` -> the text that belongs there."""
    return {**doc_texts(root), **dict(_examples(root))}


def machine_for(job: JobSpec) -> Machine:
    """The nodes that come by themselves, the GPUs that cluster.gpu names, else the small machine."""
    cluster = job.cluster
    if tells_its_nodes(cluster):
        return coming_nodes(cluster)
    return away_machine(cluster.gpu, slots=cluster.slots, nodes=cluster.nodes or 1) if cluster.gpu else SMALL_MACHINE


def _examples(root: Path) -> Iterator[tuple[str, str]]:
    for path in sorted((root / "examples").glob("*.yaml")):
        loaded = open_job(path)
        plan = make_plan(loaded.job, machine=machine_for(loaded.job), shape=find_shape(loaded.job), places=loaded.places)
        yield from _configs(path.stem, loaded.job, plan)
        yield from _rendered(path.stem, loaded.job, plan)
        yield f"tests/golden/plan/{path.stem}.txt", plan_text(plan, rejected=True) + "\n"
        yield f"tests/golden/plan/{path.stem}.json", _json(plan.as_dict())


def _configs(example: str, job: JobSpec, plan: Plan) -> Iterator[tuple[str, str]]:
    for stage in plan.stages:
        yield f"ds_configs/{example}/{stage.name}.json", _json(ds_config(job, stage))


def _rendered(example: str, job: JobSpec, plan: Plan) -> Iterator[tuple[str, str]]:
    """What starts the nodes; what they take with them is named here and not shown."""
    backend = load_backend(job.cluster.backend)
    if isinstance(backend, Renders):
        sealed = {path: f"{path} of the run folder\n" for path in SEALED_FILES}
        for name, text in backend.rendered(job, plan, RunDir(Path("/somewhere/run-1")), sealed).items():
            yield f"tests/golden/rendered/{example}/{name}", text


def _json(value: dict[str, object]) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    texts = golden_texts(root)
    for name, text in texts.items():
        write_atomic(root / name, text)
    print(f"{len(texts)} files written below {root.resolve()}")


if __name__ == "__main__":
    main()
