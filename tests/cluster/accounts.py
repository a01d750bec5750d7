"""SLURM's accounts in a host of a test cluster: MariaDB and slurmdbd, so that sacct answers. See slurm.py."""

from __future__ import annotations

from pathlib import Path

from tests.cluster.room import FOLDER
from tests.cluster.world import Cluster

PROGRAMS = ("mariadbd", "my_print_defaults", "slurmdbd", "sacct")
PORT = 6819
_INSIDE = f"{FOLDER}/slurm/database"
_SOCKET = "/run/mysqld/mysqld.sock"  # where slurmdbd looks


def keep_accounts(host: str, etc: Path) -> list[str]:
    """Lines of slurm.conf that have them kept; what slurmdbd reads is written into `etc`."""
    lines = [
        "AuthType=auth/munge",
        f"DbdHost={host}",
        "SlurmUser=root",
        "StorageType=accounting_storage/mysql",
        "StorageHost=localhost",
        "StorageUser=root",
        "PidFile=/run/slurmdbd.pid",
        f"LogFile={FOLDER}/slurm/slurmdbd.log",
        "",
    ]
    path = etc / "slurmdbd.conf"
    path.write_text("\n".join(lines))
    path.chmod(0o600)  # or slurmdbd refuses it
    return ["AccountingStorageType=accounting_storage/slurmdbd", f"AccountingStorageHost={host}"]


def open_accounts(cluster: Cluster, host: str) -> None:
    """Where munged runs. Returns when slurmdbd listens."""
    cluster.out(host, ["mkdir", "-m", "755", "/run/mysqld"])
    cluster.out(host, ["mariadb-install-db", "--no-defaults", f"--datadir={_INSIDE}", "--user=root", "--skip-test-db"])
    small = ["--innodb-buffer-pool-size=64M", "--innodb-log-file-size=8M", "--innodb-flush-method=fsync"]
    files = [f"--datadir={_INSIDE}", f"--socket={_SOCKET}", f"--log-error={FOLDER}/slurm/mariadbd.log"]
    cluster.start(host, ["mariadbd", "--no-defaults", "--user=root", "--skip-grant-tables", *files, *small])
    cluster.wait_for_port(host, 3306)
    cluster.out(host, ["slurmdbd"])
    cluster.wait_for_port(host, PORT)
