"""What the test cluster needs of the machine, and what of it is missing here, in words for the reason of a skip."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess

from tests.cluster.world import PATH, faketime_library

# Debian's package of each program.
PACKAGES = {
    "ip": "iproute2",
    "mariadbd": "mariadb-server-core",
    "mpirun": "openmpi-bin",
    "munged": "munge",
    "my_print_defaults": "mariadb-client-core",  # mariadb-install-db wants it
    "nft": "nftables",
    "nsenter": "util-linux",
    "pdsh": "pdsh",
    "ping": "iputils-ping",
    "pkill": "procps",
    "sacct": "slurm-client",
    "slurmctld": "slurm-wlm",
    "slurmd": "slurm-wlm",
    "slurmdbd": "slurmdbd",
    "sbatch": "slurm-client",
    "squeue": "slurm-client",
    "srun": "slurm-client",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "sshd": "openssh-server",
    "tc": "iproute2",
    "unshare": "util-linux",
}
LIBFAKETIME = "libfaketime"  # needed as a library: the program `faketime` is not
EVERY_CLUSTER = ("unshare", "nsenter", "ip", "sshd", "ssh", "ssh-keygen", "pkill")
SLURM = ("munged", "slurmctld", "slurmd", "srun")


def missing(*programs: str) -> str:
    """Empty where this machine can do it; otherwise what it lacks and how to get it."""
    packages = sorted({package for program in (*EVERY_CLUSTER, *programs) if (package := _lacks(program))})
    if packages:
        return f"missing here: {' '.join(packages)}; get it by: apt-get install --no-install-recommends {' '.join(packages)}"
    return refused()


def _lacks(program: str) -> str | None:
    """The package that would bring the program; None where it is here."""
    if program == LIBFAKETIME:
        return None if faketime_library() else LIBFAKETIME.removeprefix("lib")
    return None if shutil.which(program, path=PATH) else PACKAGES[program]


@functools.cache
def refused() -> str:
    """What a try says: rights and kernel, for namespaces, mounts, bridges and cables."""
    if os.geteuid() != 0:
        return "missing here: root, to make namespaces (on a machine of your own: sudo make test-cluster)"
    script = "mount -t tmpfs tmpfs /run && ip link add name switch type bridge && ip link add name near type veth peer name far"
    namespaces = ["--fork", "--pid", "--mount", "--mount-proc", "--net", "--uts", "--ipc"]
    done = subprocess.run(["unshare", *namespaces, "sh", "-c", script], capture_output=True, text=True, check=False)
    said = " ".join(done.stderr.split())
    return (
        f"missing here: rights (in a container: --privileged) or a kernel with namespaces, bridges and veth: {said}"
        if done.returncode
        else ""
    )
