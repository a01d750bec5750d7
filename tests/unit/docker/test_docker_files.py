"""docker/: what can be said of the files without building anything."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]
DOCKER = ROOT / "docker"
FILES = ("Dockerfile", "Dockerfile.cpu")
OPS = {"AIO": "async_io", "CPU_ADAM": "cpu_adam", "PIN_MEMORY": "pin_memory", "QUANTIZER": "quantizer"}  # DS_BUILD_… and name


def tool(name: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """A program of the development environment."""
    argv = [Path(sys.executable).with_name(name), *words]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)


def instructions(name: str) -> list[str]:
    """A Dockerfile's instructions, each on one line, without comments."""
    text = re.sub(r"^#.*\n", "", (DOCKER / name).read_text(encoding="utf-8"), flags=re.M)
    return [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]


@pytest.mark.parametrize("name", FILES)
def test_hadolint_finds_nothing(name: str) -> None:
    done = tool("hadolint", DOCKER / name)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_shellcheck_finds_nothing() -> None:
    done = tool("shellcheck", DOCKER / "entrypoint", DOCKER / "portable-cxx")
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_compose_file_is_one() -> None:
    path = DOCKER / "compose.cpu.yaml"
    done = tool("docker-compose", "-f", path, "config", "--quiet")
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    services = yaml.safe_load(path.read_text(encoding="utf-8"))["services"]
    assert set(services) == {"keys", "login", "node1", "node2"}
    readers = {name for name, service in services.items() if any(volume.startswith("keys:") for volume in service["volumes"])}
    assert readers == {"keys", "login"}


def test_a_build_gets_what_the_dockerfiles_copy_and_nothing_else() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    copies = [line.split() for name in FILES for line in instructions(name) if line.startswith("COPY") and "--from" not in line]
    wanted = {word for words in copies for word in words[1:-1] if not word.startswith("--")}
    assert lines[0] == "*"
    assert {line[1:] for line in lines if line.startswith("!")} == wanted
    assert all((ROOT / path).exists() for path in wanted)
    assert not any("+" in line for line in lines)  # docker 20.10 takes it for an operator: "syntax error in pattern"


def test_the_images_differ_in_what_they_have_to() -> None:
    """Users, keys, entrypoint, health check: from the last stage on, and in the layer of the system, they are the same."""
    last = [instructions(name)[instructions(name).index("FROM system") :] for name in FILES]
    assert [line for line in last[0] if line not in last[1]] == [line for line in last[0] if line.startswith("LABEL")]
    assert len(last[0]) == len(last[1])


@pytest.mark.parametrize("name", FILES)
def test_neither_runs_as_root_nor_keeps_host_keys_or_versions_unpinned(name: str) -> None:
    lines = instructions(name)
    assert [line for line in lines if line.startswith("USER")] == ["USER 1000:1000"]
    assert all("rm -rf" in line and "/etc/ssh/ssh_host_*" in line for line in lines if "openssh-server" in line)
    installs = [line for line in lines if "pip install" in line or "pip wheel" in line]
    assert all("--require-hashes" in line or "--no-index" in line or "/source" in line for line in installs)
    bases = [line.partition("=")[2] for line in lines if re.match(r"ARG (BASE|DEVEL)_IMAGE=", line)]
    assert bases
    assert all(re.search(r":.*\d+.*-", base) for base in bases)


def test_the_ops_that_are_compiled_are_those_that_training_asks_for() -> None:
    text = (ROOT / "launcher/train/ops.py").read_text(encoding="utf-8")
    asked = set(re.findall(r'"(\w+)": "\w+Builder"', text))
    compiled = {
        name: set(match[1].split())
        for name in FILES
        if (match := re.search(r'DEEPSPEED_OPS="([A-Z_ ]+)"', (DOCKER / name).read_text(encoding="utf-8")))
    }
    assert {OPS[op] for op in compiled["Dockerfile"]} == asked
    assert {OPS[op] for op in compiled["Dockerfile.cpu"]} == asked - {"quantizer"}  # which has no CPU version


@pytest.mark.parametrize(
    ("arch", "wanted"),
    [
        ("x86-64-v3", "-O3 -g0 -march=x86-64-v3 -D__AVX256__ a b.cpp"),
        ("x86-64-v4", "-O3 -g0 -march=x86-64-v4 -D__AVX512__ a b.cpp"),
    ],
)
def test_ops_are_compiled_for_the_processors_that_were_asked_for(tmp_path: Path, arch: str, wanted: str) -> None:
    (tmp_path / "c++").write_text('#!/bin/sh\necho "$*"\n')
    (tmp_path / "c++").chmod(0o755)
    argv = [DOCKER / "portable-cxx", "-O3", "-g", "-march=native", "-D__AVX512__", "a b.cpp"]
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "CPU_ARCH": arch}
    assert subprocess.run(argv, env=env, capture_output=True, text=True, check=True).stdout == f"{wanted}\n"
