"""(job, orders of its stages, run folder) -> a shell script that runs them by `deepspeed --launcher pdsh`. Pure.

For those who want no keepers on their hosts. DeepSpeed and pdsh hand values over through the hosts' shells, half quoted: what
does not come through unchanged is refused, and the script is then one that says so.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence

from launcher.backends.fleet_order import FleetOrder
from launcher.backends.request import TOKEN, LaunchRequest
from launcher.errors import EXIT_RUN, EXIT_USAGE
from launcher.plan.plan import Machine
from launcher.rundir.folder import RunDir
from launcher.spec.job import JobSpec

# Not quoted by DeepSpeed on the way, so nothing in it may mean anything to a shell or to pdsh.
_BARE = re.compile(r"[A-Za-z0-9_@+=:,./-]+")
# Put into double quotes, where these still mean something: to the shell, to csh, and %n %h %u %% to pdsh.
_SPECIAL = '"$`\\!%'
# What bash or zsh does not take from an `export`, or changes by itself.
_SHELLS_OWN = re.compile(
    r"BASH.*|E?UID|PPID|GROUPS|(OLD)?PWD|SHLVL|_|SECONDS|S?RANDOM|LINENO|EPOCH.*|SHELLOPTS|POSIXLY_CORRECT"
    r"|FUNCNAME|DIRSTACK|HISTCMD|OPTIND|PIPESTATUS|COMP_WORDBREAKS|path|status|argv"
)
_SSH = (
    *("-oBatchMode=yes", "-oStrictHostKeyChecking=yes", "-oServerAliveInterval=2", "-oServerAliveCountMax=3"),
    *("-oControlMaster=no", "-oControlPath=none", "-oLogLevel=ERROR"),
)

_HEAD = """\
#!/bin/sh
# Job {job}: prepare on this machine, then each stage by DeepSpeed's own launcher over pdsh, which has to be installed here.
# All hosts have to share this folder: {run}
#
# Unlike under `launcher run`, nothing is asked of the hosts first (`launcher doctor` does), a rank that dies or a host that
# does not answer leaves the ranks of the others waiting, a connection that breaks leaves ranks behind, nobody checks that
# artifacts are whole and gates are held, or goes on from a checkpoint. On Ctrl-C `deepspeed` ends every DeepSpeed job that you
# have on these hosts, this one or not.
set -eu
master={master}  # the first host, by a name or an address that all of them reach
port={port}  # free on that host

# `deepspeed` of the Python that the hosts have. What it would hand on of this shell, tokens among it, stays here.
deepspeed() (
    for name in $(env | sed -n {prefixes}); do unset "$name"; done
    cd /
    export DS_ACCELERATOR=cpu PDSH_SSH_ARGS_APPEND={ssh}
    exec {python} -X utf8 -u -P -m deepspeed.launcher.runner "$@"
)

# The exit code of `deepspeed` is 0 also where an ssh was killed: every rank leaves a marker as its last act.
finished() {{
    ls "$1" >/dev/null 2>&1 || true # NFS looks again
    rank=0
    while [ "$rank" -lt "$2" ]; do
        [ -e "$1/rank$rank.json" ] || {{ echo "rank $rank has not finished: $1" >&2; exit {failed}; }}
        rank=$((rank + 1))
    done
}}
"""
_HANDED_ON = (
    "MLFLOW",
    "PYTHON",
    "MV2",
    "UCX",
)  # names that begin so; NCCL too where the runner takes this machine for one with GPUs


def script(
    job: JobSpec, machine: Machine, run: RunDir, orders: Sequence[FleetOrder], *, prepare: LaunchRequest, python: str, port: int
) -> dict[str, str]:
    """Files of rendered/: commands.sh, and the environment of each stage's ranks as DeepSpeed reads it.

    commands.sh alone where a value cannot go this way: it then says which, and ends with exit code 2.
    """
    if refused := list(dict.fromkeys(find_unfit(job, run, orders, python=python))):
        return {"commands.sh": _refusal(refused)}
    prefixes = " ".join(f"-e 's/^\\({prefix}[A-Za-z0-9_]*\\)=.*/\\1/p'" for prefix in _HANDED_ON)
    head = _HEAD.format(
        job=job.name,
        run=run.path,
        master=orders[0].hosts[0],
        port=port,
        prefixes=prefixes,
        ssh=shlex.quote(" ".join((*(["-F", job.cluster.ssh_config] if job.cluster.ssh_config else []), *_SSH))),
        python=shlex.quote(python),
        failed=EXIT_RUN,
    )
    lines = [f"# {prepare.stage}", prepare.shell_text()]
    for order in orders:
        lines += ["", f"# {order.stage}", *_stage_lines(machine, run, order)]
    files = {f"{order.stage}.env": _env_text(order) for order in orders}
    return {"commands.sh": head + "\n".join(lines) + "\n", **files}


def find_unfit(job: JobSpec, run: RunDir, orders: Sequence[FleetOrder], *, python: str) -> Iterator[str]:
    """What of a run cannot go by pdsh, each as `where: why`."""
    for where, value in (("the path of Python", python), ("cluster.ssh_config", job.cluster.ssh_config or "-")):
        if not _BARE.fullmatch(value):
            yield f"{where}: {value} is not quoted on the way: only letters, digits and _@+=:,./- come through"
    if flaw := _flaw_of_word(str(run.path)):
        yield f"the run folder: {run.path} {flaw}"
    for name in job.cluster.secrets:
        yield f"cluster.secrets: the value of {name} would be in the command line of every host, for all to see"
    for order in orders:
        for host in order.hosts:
            if not _BARE.fullmatch(host) or ":" in host:
                yield f"host {host}: pdsh takes what stands before a colon for something else"
        for name, value in order.env.items():
            if name == TOKEN:
                continue
            if _SHELLS_OWN.fullmatch(name):
                yield f"cluster.env.{name}: the hosts' shell sets this variable itself"
            elif flaw := _flaw_of_value(value):
                yield f"cluster.env.{name}: its value {flaw}"


def _flaw_of_value(value: str) -> str:
    """Why a value of the environment would arrive as another one; empty where it does not."""
    if found := sorted({sign for sign in value if sign in _SPECIAL}):
        return f"has {' '.join(found)}, which the hosts' shell or pdsh would put something else for"
    if not value.isprintable():
        return "has characters that are not text in one line"
    return "begins or ends with a blank, which DeepSpeed cuts off" if value != value.strip() else ""


def _flaw_of_word(word: str) -> str:
    """The same for an argument: DeepSpeed quotes those with a blank, as values, and no others."""
    if " " in word:
        return _flaw_of_value(word)
    return "" if _BARE.fullmatch(word) else "is not quoted on the way: only letters, digits, blanks and _@+=:,./- come through"


def _refusal(refused: Sequence[str]) -> str:
    head = [
        "#!/bin/sh",
        "# This run cannot be started by `deepspeed --launcher pdsh`. `launcher run` and `launcher resume` can.",
    ]
    said = [
        f"printf '%s\\n' {shlex.quote(one)} >&2"
        for one in ("`deepspeed` over pdsh would not hand this on unchanged:", *refused)
    ]
    advice = shlex.quote("start it with `launcher run`, which hands every value on as it is, or change these")
    return "\n".join([*head, *said, f"printf '%s\\n' {advice} >&2", f"exit {EXIT_USAGE}"]) + "\n"


def _env_text(order: FleetOrder) -> str:
    """One `NAME=value` a line, nothing else: DeepSpeed breaks on blank lines. Without PYTHONPATH it adds its own folder."""
    return "".join(f"{name}={value}\n" for name, value in {"PYTHONPATH": "", **order.env}.items())


def _stage_lines(machine: Machine, run: RunDir, order: FleetOrder) -> list[str]:
    done = shlex.quote(str(run.stage(order.stage).done(0).parent))
    argv = ["--hostfile", str(run.rendered / "hostfile"), "--launcher", "pdsh", "--force_multi", "--no_ssh_check"]
    argv += _include(machine, order)
    words = ["--no_local_rank", "--module", "launcher.stages", "train", str(run.path), order.stage]
    return [
        f"rm -f {done}/rank*.json",
        f"export DS_ENV_FILE={shlex.quote(str(run.rendered / f'{order.stage}.env'))}",
        f'deepspeed {shlex.join(argv)} --master_addr "$master" --master_port "$port" {shlex.join(words)}',
        f"finished {done} {len(order.hosts) * order.slots}",
    ]


def _include(machine: Machine, order: FleetOrder) -> list[str]:
    """Nothing where the stage takes every slot of the hostfile."""
    devices = machine.devices[: order.slots] or tuple(range(order.slots))
    if order.hosts == machine.hosts and devices == tuple(range(machine.slots)):
        return []
    return ["--include", "@".join(f"{host}:{','.join(map(str, devices))}" for host in order.hosts)]
