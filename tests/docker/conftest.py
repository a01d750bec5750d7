"""Every test here needs a machine that can build and run containers; the image is built once for all of them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.docker.daemon import Daemon
from tests.docker.howto import SHIM, block
from tests.docker.needs import missing
from tests.docker.supplies import ROOT, fetch_wheels, make_base, served

BASE = "base:tests"
REVISION = "0123abc"
WITH_OPS = os.environ.get("DOCKER_OPS") == "compile"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before any fixture builds anything."""
    if reason := missing():
        pytest.skip(reason)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A daemon's folder with the CPU image, built by the howto's own command: three minutes on two cores.

    Without DeepSpeed's ops, which take minutes more to compile: DOCKER_OPS=compile (`make test-docker`) has them.
    """
    folder = tmp_path_factory.mktemp("docker")
    wheels = folder / "wheels"
    wheels.mkdir()
    try:
        with ThreadPoolExecutor(2) as pool:
            for done in [pool.submit(make_base, folder / "base.tar"), pool.submit(fetch_wheels, wheels)]:
                done.result()
        with served(wheels) as url, Daemon(folder, network=False) as daemon:
            daemon.run("import", str(folder / "base.tar"), BASE)
            (folder / "pip.conf").write_text(f"[global]\nno-index = true\nfind-links = {url}\n")
            given = {"BASE_IMAGE": BASE, "TORCH_WHEELS": url, "VERSION": "0.1.0", "REVISION": REVISION}
            given |= {} if WITH_OPS else {"DEEPSPEED_OPS": ""}
            secret = f"--secret id=pip.conf,src={folder}/pip.conf"
            words = [secret, *(f"--build-arg {key}={value}" for key, value in given.items())]
            done = daemon.sh(SHIM + block("build"), env={"BUILD_WORDS": " ".join(words)}, cwd=ROOT, timeout_s=1200)
            (folder / "build.log").write_text(done.stderr)
        yield folder
    finally:
        subprocess.run(["rm", "-rf", str(folder)], check=True)  # gigabytes, which pytest would keep for three runs


@pytest.fixture(scope="session")
def daemon(built: Path) -> Iterator[Daemon]:
    """A daemon with the image, whose containers reach each other and nothing else."""
    with Daemon(built, network=True) as daemon:
        yield daemon
