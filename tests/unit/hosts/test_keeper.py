"""Agent, keeper and link together, here and without ssh: what an order does, and what a broken connection does not."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.backends.request import TOKEN
from launcher.backends.shell import boot_id, find_processes, read_stat
from launcher.errors import LauncherError
from launcher.hosts.connection.link import Link
from launcher.hosts.connection.order import Leader, Order
from launcher.hosts.files.disk import CONTROLLER, claim
from launcher.hosts.fleet.room import room_of
from launcher.rundir.folder import RunDir

AGENT = (sys.executable, "-m", "launcher.hosts", "agent")
VALUE = "a 'b' $HOME\n`id`"
SLEEP = "import time; time.sleep(60)"


@pytest.fixture
def order(tmp_path):
    """An order for a script on this machine; whatever it started has ended afterwards."""

    def of(script: str, *, lease_s: float = 20.0, attempt: str = "1", argv: tuple[str, ...] = ()) -> Order:
        env = {TOKEN: str(tmp_path), "VALUE": VALUE}
        start = argv or (sys.executable, "-S", "-c", script, "{node}", "{addr}", "{port}")
        return Order(
            token=str(tmp_path), attempt=attempt, host="here", stage="sft", node=0, slots=1, argv=start, env=env,
            cwd=str(tmp_path), others=(), lease_s=lease_s,
        )  # fmt: skip

    yield of
    for process in find_processes(str(tmp_path)):
        os.kill(process.pid, signal.SIGKILL)


def test_an_order_is_started_when_the_hosts_have_met_and_its_end_is_told(order, tmp_path):
    script = "import os, sys; print(sys.argv[1:], repr(os.environ['VALUE'])); sys.exit(3)"
    told = follow(Link(AGENT, order(script)))
    assert [message["kind"] for message in told] == ["ready", "started", "line", "ended"]
    assert told[2]["text"] == f"{['0', '10.0.0.1', str(told[0]['port'])]} {VALUE!r}"
    assert told[-1]["code"] == 3
    assert find_processes(str(tmp_path)) == []
    wait_for(lambda: not room_of(str(tmp_path)).socket.exists())


def test_a_program_that_is_not_there_is_a_problem(order):
    with pytest.raises(LauncherError, match=r"E420.*/no/such/program: No such file"):
        follow(Link(AGENT, order("", argv=("/no/such/program",), lease_s=1.0)))


def test_a_broken_connection_ends_nothing_and_loses_nothing(order):
    script = "import time\nfor number in range(12):\n    print(number, flush=True)\n    time.sleep(0.25)"

    async def kill_the_connection(link: Link, message) -> None:
        if message.get("text") in ("2", "6"):
            link._pipe.process.kill()

    told = follow(Link(AGENT, order(script)), then=kill_the_connection)
    lines = [message["text"] for message in told if message["kind"] == "line"]
    assert lines == [str(number) for number in range(12)]
    assert [message["kind"] for message in told].count("down") == 2
    assert told[-1] | {"n": 0} == {"n": 0, "kind": "ended", "code": 0, "asked": False, "left": 0, "alive": []}


def test_stop_ends_everything_that_carries_the_run(order, tmp_path):
    script = (
        "import subprocess, sys, time; subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(60)']); " + SLEEP
    )

    async def stop(link: Link, message) -> None:
        if message["kind"] == "started":
            await asyncio.sleep(0.5)
            link.say({"stop": 2.0})

    told = follow(Link(AGENT, order(script)), then=stop)
    assert (told[-1]["kind"], told[-1]["asked"], told[-1]["left"]) == ("ended", True, 2)
    assert find_processes(str(tmp_path)) == []


def test_a_rank_whose_death_nobody_saw_in_time_is_explained_by_the_exit_code_of_launch_py(order, tmp_path):
    """launch.py asks the kernel first, and nobody after it can. A keeper on busy cores finds a later rank."""
    seen = tmp_path / "seen"
    script = f"""
import os, pathlib, subprocess, sys, time
env = {{**os.environ, "RANK": "0", "LOCAL_RANK": "0"}}
while not pathlib.Path({str(seen)!r}).exists():
    process = subprocess.Popen([sys.executable, "-S", "-c", {SLEEP!r}], env=env)
    time.sleep(0.6)  # the keeper looks for ranks twice a second
    process.kill()
    process.wait()
    time.sleep(0.3)  # for the word of it to come
sys.exit(256 - 9)
"""

    async def note(link: Link, message) -> None:
        if message["kind"] == "death":
            seen.touch()

    told = follow(Link(AGENT, order(script)), then=note)
    deaths = [(message["rank"], message["wait_status"]) for message in told if message["kind"] == "death"]
    assert deaths[-1] == (0, 9)
    assert [message["kind"] for message in told][-1] == "ended"


def test_ranks_that_are_asked_to_leave_end_by_themselves(order):
    """launch.py starts a rank; only the rank is asked, and nobody dies of the signal."""
    rank = "import signal, time\nwhile signal.SIGUSR1 not in signal.sigpending(): time.sleep(0.02)\nprint('left', flush=True)"
    script = f"""
import os, subprocess, sys
env = {{**os.environ, "RANK": "0", "LOCAL_RANK": "0"}}
process = subprocess.Popen([sys.executable, "-S", "-c", {rank!r}], env=env)
print("up", flush=True)
sys.exit(process.wait())
"""

    async def ask(link: Link, message) -> None:
        if message.get("text") == "up":
            await asyncio.sleep(0.3)  # the kernel shows an environment a moment after the start
            link.say({"leave": True})

    told = follow(Link(AGENT, order(script)), then=ask)
    assert [message["text"] for message in told if message["kind"] == "line"] == ["up", "left"]
    assert (told[-1]["code"], told[-1]["asked"]) == (0, False)


def test_what_is_said_while_the_connection_is_broken_arrives_over_the_next_one(order):
    async def break_and_stop(link: Link, message) -> None:
        if message["kind"] == "started":
            link._pipe.process.kill()
            link.say({"stop": 1.0})

    told = follow(Link(AGENT, order(SLEEP)), then=break_and_stop)
    assert (told[-1]["kind"], told[-1]["asked"]) == ("ended", True)


def test_without_a_controller_the_ranks_end_with_the_lease(order, tmp_path):
    async def go_away(link: Link, message) -> None:
        if message["kind"] == "started":
            raise Gone

    with pytest.raises(Gone):
        follow(Link(AGENT, order(SLEEP, lease_s=2.0)), then=go_away)
    assert find_processes(str(tmp_path))
    wait_for(lambda: not find_processes(str(tmp_path)), 8)
    wait_for(lambda: not room_of(str(tmp_path)).socket.exists(), 8)


def test_another_attempt_ends_the_one_before_it_first(order, tmp_path):
    async def go_away(link: Link, message) -> None:
        if message["kind"] == "started":
            raise Gone

    with pytest.raises(Gone):
        follow(Link(AGENT, order(SLEEP)), then=go_away)
    [before] = find_processes(str(tmp_path))
    told = follow(Link(AGENT, order("print('second')", attempt="2")))
    assert [message.get("text") for message in told if message["kind"] == "line"] == ["second"]
    assert before not in find_processes(str(tmp_path))


def test_a_second_name_of_the_same_machine_is_refused(order, tmp_path):
    """Another node of the same attempt. The first one goes on."""
    refused: list[LauncherError] = []

    async def come_by_another_name(link: Link, message) -> None:
        if message["kind"] != "started":
            return
        try:
            async with contextlib.aclosing(Link(AGENT, replace(link.order, host="10.0.0.1", node=1)).messages()) as messages:
                await anext(messages)
        except LauncherError as error:
            refused.append(error)
        link.say({"stop": 1.0})

    told = follow(Link(AGENT, order(SLEEP)), then=come_by_another_name)
    assert [message["kind"] for message in told] == ["ready", "started", "ended"]
    assert refused[0].text().startswith("10.0.0.1 [E431] is the same machine as here: both names lead there\n  hint: name each")


def test_processes_of_a_keeper_that_was_killed_are_ended_first(order, tmp_path):
    keeper: list[int] = []

    async def kill_the_keeper(link: Link, message) -> None:
        if message["kind"] == "started":
            keeper.append(int(Path(f"/proc/{message['pid']}/stat").read_text().split()[3]))
            os.kill(keeper[0], signal.SIGKILL)
            raise Gone

    with pytest.raises(Gone):
        follow(Link(AGENT, order(SLEEP)), then=kill_the_keeper)
    wait_for(lambda: find_processes(str(tmp_path)))  # the kernel shows an environment a moment after the start
    [orphan] = find_processes(str(tmp_path))
    told = follow(Link(AGENT, order("print('second')", attempt="2")))
    assert told[0]["left"] == [orphan.pid]
    assert told[-1]["code"] == 0


def test_a_keeper_that_was_killed_under_its_controller_is_told_and_nothing_is_started_twice(order, tmp_path):
    keeper: list[int] = []

    async def kill_the_keeper(link: Link, message) -> None:
        if message["kind"] == "started":
            await asyncio.to_thread(wait_for, lambda: find_processes(str(tmp_path)))
            keeper.append(int(Path(f"/proc/{message['pid']}/stat").read_text().split()[3]))
            os.kill(keeper[0], signal.SIGKILL)

    told = follow(Link(AGENT, order(SLEEP)), then=kill_the_keeper)
    assert [message["kind"] for message in told] == ["ready", "started", "down", "up", "keeper.lost", "ended"]
    assert [message["n"] for message in told if "n" in message] == [1, 2, 3, 4]
    assert told[-1]["left"] == 1
    assert find_processes(str(tmp_path)) == []


def test_a_host_with_a_disk_of_its_own_tells_what_its_ranks_write(order, tmp_path):
    stage = RunDir(tmp_path).stage("sft")
    for path in (stage.done(0), stage.rank_log(0)):
        path.parent.mkdir(parents=True)
    stage.done(0).write_text("of an earlier attempt")
    stage.rank_log(0).write_text("came from the controller\n")
    script = f"""
import os, pathlib, time
stage = pathlib.Path({str(stage.path)!r})
with (stage / "logs/rank0.log").open("a") as file: file.write(os.environ["LAUNCHER_TENDS"] + "\\n")
(stage / "done").mkdir()
(stage / "done/rank0.json").write_text("now")
"""
    told = follow(Link(AGENT, order(script)), tends=True)
    assert told[0]["disk"] == "here"
    words = {message["file"]: (message["at"], message["text"]) for message in told if message["kind"] == "word"}
    assert words == {"done/rank0.json": (0, "now"), "logs/rank0.log": (25, "1\n")}


def test_a_host_that_shares_the_disk_of_the_controller_leaves_its_files_alone(order, tmp_path):
    run = RunDir(tmp_path)
    run.stage("sft").done(0).parent.mkdir(parents=True)
    run.stage("sft").done(0).write_text("the controller's")
    claim(run, "sft", "1", CONTROLLER)
    told = follow(Link(AGENT, order("")))
    assert told[0]["disk"] == CONTROLLER
    assert [message["kind"] for message in told if message["kind"] == "word"] == []
    assert run.stage("sft").done(0).exists()


def test_a_host_that_cannot_make_the_run_folder_says_so(order, tmp_path):
    (tmp_path / "stages").write_text("in the way")
    told = follow(Link(AGENT, order("")))
    assert str(told[0]["flaw"]).startswith("the run folder cannot be made: ")


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (("sh", "-c", "echo 'ssh: connect to host here port 22: Connection refused' >&2; exit 255"), "E417"),
        (("sh", "-c", "cat >/dev/null & echo Welcome to this host"), "E417"),
        ((sys.executable, "-c", "import launcher.nothing"), "E420"),
    ],
)
def test_a_host_that_cannot_be_reached_is_a_problem(order, argv, code):
    with pytest.raises(LauncherError, match=code):
        follow(Link(argv, order(SLEEP)))


class Gone(Exception):
    """The controller has vanished."""


def follow(link: Link, *, then=None, tends: bool = False) -> list[dict[str, object]]:
    """Everything that the host tells; it is told to go when it is ready."""

    async def listen() -> list[dict[str, object]]:
        told = []
        async with contextlib.aclosing(link.messages()) as messages:
            async for message in messages:
                told.append(message)
                if message["kind"] == "ready":
                    link.say({"go": {"addr": "10.0.0.1", "port": message["port"], "tends": tends}})
                if then is not None:
                    await then(link, message)
        return told

    return asyncio.run(asyncio.wait_for(listen(), 40))


def wait_for(true, seconds: float = 5.0) -> None:
    deadline_s = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def test_who_leads_is_not_ended_as_a_leftover(order, tmp_path):
    """On the host where the fleet runs; it carries the token too."""
    argv = [sys.executable, "-S", "-c", SLEEP]
    with (
        subprocess.Popen(argv, env={TOKEN: str(tmp_path)}) as fleet,
        subprocess.Popen(argv, env={TOKEN: str(tmp_path)}) as left,
    ):
        stat = read_stat(fleet.pid)
        leader = Leader(pid=fleet.pid, started_ticks=stat.started_ticks, boot=boot_id())
        told = follow(Link(AGENT, replace(order("pass"), leader=leader)))
        assert told[0]["left"] == [left.pid]
        assert (left.wait(), fleet.poll()) == (-signal.SIGTERM, None)
        fleet.kill()
    assert told[-1]["code"] == 0
