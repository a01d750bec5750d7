"""Peaks of memory and step times of this program on one NVIDIA GPU, beside what the plan says: rows for benchmarks/planner.py.

python benchmarks/gpu.py [--out gpu.csv] [--minutes 10] [--only PATTERN]   measure; a second run goes on in the same file
python benchmarks/gpu.py --list [--gpu H100-80GB] [--only PATTERN]         what would be measured, and what the plan says of it
python benchmarks/gpu.py --device cpu [...]                                tiny models on this CPU: only whether it all works
python benchmarks/planner.py --points gpu.csv                              the plan judged by the file

Models have the true shapes of published ones and random weights, rows are random tokens: nothing is fetched. Each case is one
stage on one rank in a process of its own, with the plan's DeepSpeed config, engine and loop (gpu_runs/child.py); its rows are
written before the next one begins. A case that the plan gives no chance is left out. One that runs out of memory is a row
(metric `fits`, value `OOM`). One that fails or hangs is a row that says why (metric `skipped`); the next run tries it again.

A machine without a network needs torch with CUDA, transformers, and this program's other requirements but trl. What is missing
is told. Wheels to carry are made beside a network; DeepSpeed compiles what it needs when it needs it, which is nothing here:

    DS_BUILD_OPS=0 pip wheel --no-deps --no-build-isolation -w wheels deepspeed==0.19.8
    pip wheel --no-deps -w wheels .                                                     # zerolaunch
    pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_28_x86_64 \\
        --platform manylinux2014_x86_64 -d wheels -c constraints.txt \\
        datasets dill multiprocess hjson pydantic pydantic_core annotated-types typing-inspection
    pip install --no-index --no-deps --target site wheels/*.whl && PYTHONPATH=site python benchmarks/gpu.py     # there
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOT_NEEDED = ("trl",)  # ppo only
MODULES = {"pyyaml": "yaml", "nvidia-ml-py": "pynvml", "huggingface-hub": "huggingface_hub"}
TRANSITIVE = (
    "hjson",
    "dill",
    "multiprocess",
    "pydantic_core",
    "annotated_types",
    "typing_inspection",
    "einops",
    "msgpack",
    "cpuinfo",
)


def missing() -> tuple[list[str], list[str]]:
    """(Packages that are not there, packages of another version than pyproject.toml asks for)."""
    if importlib.util.find_spec("packaging") is None:
        return ["packaging, and whatever it would find missing"], []
    from packaging.requirements import Requirement

    with (ROOT / "pyproject.toml").open("rb") as file:
        wanted = [Requirement(text) for text in tomllib.load(file)["project"]["dependencies"]]
    absent, other = [], []
    for one in wanted:
        name = one.name.lower()
        if name in NOT_NEEDED:
            continue
        if importlib.util.find_spec(MODULES.get(name, name)) is None:
            absent.append(str(one))
            continue
        there = importlib.metadata.version(one.name)
        if not one.specifier.contains(there, prereleases=True):
            other.append(f"{one.name} {there}, asked for is {one.specifier}")
    return absent + [name for name in TRANSITIVE if importlib.util.find_spec(name) is None], other


def refuse_missing() -> None:
    absent, other = missing()
    for line in other:
        print(f"note: {line}", file=sys.stderr)
    if absent:
        sys.exit(f"not installed: {', '.join(absent)}\nhow to bring them to a machine without a network: {__file__} --help")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu.csv"), help="rows are appended to it (default: gpu.csv)")
    parser.add_argument("--minutes", type=float, default=10.0, help="no case goes on for longer (default: 10)")
    parser.add_argument("--only", default="", metavar="PATTERN", help="regular expression: cases whose names it is found in")
    parser.add_argument("--list", action="store_true", help="print the cases and what the plan says of them")
    parser.add_argument("--gpu", help="with --list: as if this GPU of the catalogue were here")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    args = parser.parse_args()
    refuse_missing()
    from gpu_runs import session  # behind the check: it imports what may be missing
    from gpu_runs.cases import CASES, CPU_CASES

    cases = [case for case in (CPU_CASES if args.device == "cpu" else CASES) if re.search(args.only, case.name)]
    machine = session.machine_of(args.gpu) if args.gpu and args.list else session.machine_here(args.device)
    if not cases:
        sys.exit(f"--only {args.only} is found in no case: see --list")
    if machine is None:
        sys.exit(
            "no GPU that torch can use: see nvidia-smi, and whether torch was built with CUDA; --device cpu, or --list --gpu"
        )
    if args.list:
        print(session.list_text(cases, machine))
        return 0
    failed = session.measure_all(cases, machine, args.out, minutes=args.minutes)
    print(f"rows are in {args.out}; judge them: python benchmarks/planner.py --points {args.out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))  # where zerolaunch is not installed
    sys.exit(main())
