"""What the image tests need of the machine, and what of it is missing here, in words for the reason of a skip."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess

# Debian's client comes with Debian's daemon and speaks to it; another one in /usr/local may lack what `build` needs.
PATH = "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin"
# Debian's package of each program.
PACKAGES = {
    "docker": "docker.io",
    "dockerd": "docker.io",
    "ip": "iproute2",
    "iptables": "iptables",
    "mmdebstrap": "mmdebstrap",
    "unshare": "util-linux",
}


@functools.cache
def missing() -> str:
    """Empty where images can be built and run here; otherwise what is lacking and how to get it."""
    packages = sorted({package for program, package in PACKAGES.items() if not shutil.which(program, path=PATH)})
    if packages:
        return f"missing here: {' '.join(packages)}; get it by: apt-get install --no-install-recommends {' '.join(packages)}"
    if os.geteuid() != 0:
        return "missing here: root, for a docker daemon of the tests' own (on a machine of your own: sudo make test-docker)"
    return _refused()


def _refused() -> str:
    """What a try says: rights and kernel, for namespaces, mounts, control groups, bridges and rules."""
    script = (
        "mount -t tmpfs tmpfs /run && ip link add name switch type bridge && iptables -t nat -L >/dev/null"
        " && group=$(ls -d /sys/fs/cgroup/*/ | head -n 1)try.$$ && mkdir $group && rmdir $group"
    )
    argv = ["unshare", "--fork", "--pid", "--mount", "--mount-proc", "--net", "sh", "-c", script]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env={"PATH": PATH})
    said = " ".join(done.stderr.split())
    return f"missing here: rights (in a container: --privileged) or a kernel for containers: {said}" if done.returncode else ""
