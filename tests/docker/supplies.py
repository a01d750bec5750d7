"""What a build takes from outside, fetched by this machine's own means: a base image, and the wheels of the locks.

No registry is asked: the base is Debian by mmdebstrap from the machine's mirror. The wheels are downloaded by the machine's
pip, with the index and certificates that it is set up with, and served to the build by HTTP on 127.0.0.1.
"""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from tests.docker.needs import PATH

ROOT = Path(__file__).parents[2]
LOCKS = ROOT / "docker" / "locks"
SUITE = "bookworm"  # of docker/Dockerfile.cpu
PYTHON = "3.11"  # that suite's
TORCH_WHEELS = "https://download.pytorch.org/whl/cpu/torch/"  # where the machine's pip does not find the wheel for CPUs


def make_base(archive: Path) -> None:
    """A tar of the smallest Debian that has apt."""
    argv = ["mmdebstrap", "--quiet", "--variant=apt", "--include=ca-certificates", SUITE, str(archive), *_mirrors()]
    subprocess.run(argv, check=True, env={"PATH": PATH}, stdin=subprocess.DEVNULL, timeout=600)


def _mirrors() -> list[str]:
    """Lines of sources.list: where this machine itself has the suite from. None: mmdebstrap's own choice."""
    asked = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages"]
    said = subprocess.run(asked, check=True, capture_output=True, text=True).stdout
    suites = (SUITE, f"{SUITE}-updates", f"{SUITE}-security")
    found = dict.fromkeys(line for line in said.splitlines() if line.split()[-1] in suites)
    return [f"deb {line} main" for line in found] if any(line.endswith(f" {SUITE}") for line in found) else []


def fetch_wheels(folder: Path) -> None:
    """Every file that the locks of the CPU image name, into `folder`. pip compares their hashes."""
    locks = [word for name in ("cpu", "deepspeed", "build") for word in ("-r", str(LOCKS / f"{name}.txt"))]
    argv = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation", "--require-hashes"]
    argv += ["--python-version", PYTHON, "--dest", str(folder), *locks]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=900)
    if done.returncode:
        done = subprocess.run([*argv, "--find-links", TORCH_WHEELS], capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The URL under which the folder is had on this machine."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            """A line a wheel says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
