"""docker/locks/ (`make locks`) holds what constraints.txt says and all that zerolaunch needs, each with its hashes."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[3]
LOCKS = {name: ROOT / "docker" / "locks" / f"{name}.txt" for name in ("build", "cpu", "deepspeed", "gpu")}
# CUDA, as torch itself names it, version by version.
OF_TORCH = re.compile(r"(nvidia|cuda)-[a-z0-9-]+|triton")


def pins(path: Path) -> dict[str, str]:
    lines = re.findall(r"^([A-Za-z0-9._-]+)==([^\s\\;]+)", path.read_text(encoding="utf-8"), re.M)
    return {canonicalize_name(name): version for name, version in lines}


CONSTRAINTS = pins(ROOT / "constraints.txt")


@pytest.mark.parametrize("name", LOCKS)
def test_every_version_is_that_of_the_constraints(name: str) -> None:
    for package, version in pins(LOCKS[name]).items():
        if package in CONSTRAINTS or not OF_TORCH.fullmatch(package):
            assert Version(version).public == CONSTRAINTS.get(package), f"{package}: run `make locks`"


@pytest.mark.parametrize("name", LOCKS)
def test_every_file_has_a_hash(name: str) -> None:
    text = LOCKS[name].read_text(encoding="utf-8")
    for entry in re.split(r"\n(?=[a-z])", re.sub(r"^#.*\n", "", text, flags=re.M)):
        assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", entry), entry


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_all_that_zerolaunch_draws_is_locked(name: str) -> None:
    locked = pins(LOCKS[name]) | pins(LOCKS["deepspeed"])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [Requirement(line) for line in (*project["dependencies"], *project["optional-dependencies"]["qlora"])]
    seen: set[str] = set()
    while asked:
        one = asked.pop()
        package = canonicalize_name(one.name)
        if one.marker is not None and not one.marker.evaluate({"extra": ""}):
            continue
        if OF_TORCH.fullmatch(package) and package not in locked:
            continue  # of torch's wheel for GPUs, where that is the one that is installed here
        assert package in locked, f"{package}: run `make locks`"
        assert one.specifier.contains(locked[package], prereleases=True), f"{one}: run `make locks`"
        if package not in seen:
            seen.add(package)
            asked += [Requirement(line) for line in _requires(one.name)]


def test_torch_is_built_for_what_the_image_is_for() -> None:
    assert pins(LOCKS["cpu"])["torch"].endswith("+cpu")
    cuda = pins(LOCKS["gpu"])["nvidia-cuda-runtime"].rsplit(".", 1)[0]
    text = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
    images = re.findall(r"nvidia/cuda:(\d+\.\d+)\.", text)
    assert images == [cuda, cuda]


def _requires(package: str) -> list[str]:
    try:
        return requires(package) or []
    except PackageNotFoundError:  # of the other kind of device
        return []
