"""The CPU image, as it was built: who runs in it, what it says of itself, and that no key is in it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

import launcher
from tests.docker.conftest import REVISION
from tests.docker.daemon import Daemon
from tests.docker.howto import IMAGE, SHIM, block
from tests.docker.supplies import ROOT

LOCKED_DOWN = ("run", "--rm", "--network=none", "--read-only", "--tmpfs=/tmp", "--cap-drop=ALL")
PRIVATE = "-----BEGIN OPENSSH PRIVATE KEY-----"
UNCOMPILED = """
import os, sys
import launcher.stages.ppo, launcher.stages.dpo
files = [module.__spec__.cached for module in list(sys.modules.values()) if getattr(module, "__spec__", None)]
ours = [file for file in files if isinstance(file, str) and file.startswith("/opt/")]
print("of many," if len(ours) > 1000 else f"of {len(ours)},", [file for file in ours if not os.path.exists(file)] or "none")
"""
OUTPUT: dict[str, Any] = {"capture_output": True, "text": True, "check": False}


def inspect(daemon: Daemon) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(daemon.run("image", "inspect", IMAGE).stdout)[0]
    return found


def layers(daemon: Daemon) -> list[Path]:
    """The folder of each layer, with what it adds; what a later one removes is still there."""
    data = inspect(daemon)["GraphDriver"]["Data"]
    return [Path(path) for path in [data["UpperDir"], *data["LowerDir"].split(":")]]


def test_the_commands_of_the_howto_say_the_version_and_plan_a_job(daemon: Daemon) -> None:
    said = daemon.sh(SHIM + block("one machine"), cwd=ROOT).stdout
    assert f"launcher {launcher.__version__}\n" in said
    assert "tiny on " in said


def test_it_says_what_it_is_and_runs_as_a_user_without_rights(daemon: Daemon) -> None:
    config = inspect(daemon)["Config"]
    labels = {key.removeprefix("org.opencontainers.image."): value for key, value in config["Labels"].items()}
    assert {key: labels[key] for key in ("title", "version", "revision")} == {
        "title": "zerolaunch",
        "version": "0.1.0",
        "revision": REVISION,
    }
    assert config["User"] == "1000:1000"
    assert config["Healthcheck"]["Test"] == ["CMD", "entrypoint", "health"]
    assert daemon.run(*LOCKED_DOWN, "--entrypoint=id", IMAGE, "-u").stdout == "1000\n"


def test_no_layer_has_a_key_or_a_setting_of_the_builder(daemon: Daemon) -> None:
    folders = [str(path) for path in layers(daemon)]
    assert len(folders) >= 6
    found = subprocess.run(["find", *folders, "-name", "ssh_host_*", "-o", "-name", "id_*", "-path", "*ssh*"], **OUTPUT)
    assert found.stdout == ""
    pattern = "^-----BEGIN [A-Z ]*PRIVATE KEY-----"
    assert subprocess.run(["grep", "-rlIE", pattern, *folders], **OUTPUT).stdout == ""
    for name in ("etc/pip.conf", "root/.cache", "var/lib/apt/lists/lock"):
        left = [path / name for path in layers(daemon) if (path / name).is_file() and (path / name).stat().st_size]
        assert left == [], name
    assert "127.0.0.1" not in daemon.run("history", "--no-trunc", IMAGE).stdout


def test_the_modules_that_ranks_import_are_compiled(daemon: Daemon) -> None:
    done = daemon.run(*LOCKED_DOWN, "--entrypoint=python", IMAGE, "-c", UNCOMPILED)
    assert done.stdout.endswith("\nof many, none\n"), done.stdout  # DeepSpeed's log has gone there before


@pytest.mark.parametrize(
    ("given", "words", "said"),
    [
        ((), ("sshd",), "sshd has no key that it would let in"),
        (("--env=SSHD_AUTHORIZED_KEYS=ssh-ed25519 garbage",), ("sshd",), "this is no public key: ssh-ed25519 garbage"),
        ((f"--env=SSHD_AUTHORIZED_KEYS={PRIVATE}",), ("sshd",), "a private key was given where a public one belongs"),
        (("--user=0",), ("sshd",), "sshd is not run as root here"),
        ((), ("keys",), "/keys cannot be written by user 1000"),
        ((), ("health",), "/runs cannot be written by user 1000"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else "",
)
def test_what_cannot_work_is_refused_with_what_to_do(
    daemon: Daemon, given: tuple[str, ...], words: tuple[str, ...], said: str
) -> None:
    done = daemon.run(*LOCKED_DOWN, *given, IMAGE, *words, check=False)
    assert done.returncode == 4
    first, second = done.stderr.splitlines()
    assert first == f"entrypoint: {said}"
    assert second.startswith("  hint: ")
