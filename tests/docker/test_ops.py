"""The ops that the CPU image brings compiled. `make test-docker` alone has them compiled: minutes more."""

from __future__ import annotations

import pytest

from tests.docker.conftest import WITH_OPS
from tests.docker.daemon import Daemon
from tests.docker.howto import IMAGE

LOAD = """
import shutil
from launcher.train.ops import prebuild
assert shutil.which("c++") is None
prebuild(["pin_memory", "async_io", "cpu_adam"])
print("loaded")
"""


@pytest.mark.skipif(not WITH_OPS, reason="the image is built without DeepSpeed's ops here: make test-docker")
def test_the_ops_load_where_there_is_no_compiler(daemon: Daemon) -> None:
    done = daemon.run("run", "--rm", "--network=none", "--entrypoint=python", IMAGE, "-c", LOAD)
    assert done.stdout.endswith("loaded\n")
