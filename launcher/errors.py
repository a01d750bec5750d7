"""Every error a user can meet: a catalogue of stable codes, one printable problem, one exception that carries them.

docs/errors.md is built from CATALOGUE. Codes are an interface, wording is not. Nothing here imports anything of ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

# Control characters but the newline, and the marks that reverse the direction of text: a terminal would obey them.
_UNPRINTED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """`text` with every character that a terminal might obey written as an escape: users' text is shown, never executed."""
    return _UNPRINTED.sub(lambda match: f"\\x{ord(match[0]):02x}" if ord(match[0]) < 256 else f"\\u{ord(match[0]):04x}", text)


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeInfo:
    """What a code stands for: a title, when it appears, and what usually mends it."""

    title: str
    when: str
    remedy: str


CATALOGUE: dict[str, CodeInfo] = {}

# The first digit of a code decides the exit code (docs: README, "Exit codes").
EXIT_CODES = {"1": 2, "2": 3, "3": 2, "4": 4, "5": 5, "9": 1}
EXIT_DONE, EXIT_BUG, EXIT_USAGE, EXIT_NO_PLAN, EXIT_CLUSTER, EXIT_RUN, EXIT_STOPPED = 0, 1, 2, 3, 4, 5, 6


def _code(code: str, *, title: str, when: str, remedy: str) -> None:
    assert code not in CATALOGUE, code
    CATALOGUE[code] = CodeInfo(title=title, when=when, remedy=remedy)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong: where, which rule with the value got, and the nearest thing that would work.

    `where` is a place a reader can open: `job.yaml:12:3`, a file, a host, a stage. Empty where there is none.
    """

    code: str
    where: str
    what: str
    hint: str

    def __post_init__(self) -> None:
        assert self.code in CATALOGUE, f"{self.code} is not in the catalogue"

    def text(self) -> str:
        """Two lines: `where [code] what` and an indented hint."""
        head = f"{self.where} [{self.code}] {self.what}".lstrip()
        return printable(f"{head}\n  hint: {self.hint}" if self.hint else head)

    def as_dict(self) -> dict[str, str]:
        return {"code": self.code, "where": self.where, "what": self.what, "hint": self.hint}


class LauncherError(Exception):
    """Problems for the user, in the order found. Raised once with all of them, never one at a time."""

    def __init__(self, problems: Problem | Iterable[Problem]):
        self.problems: tuple[Problem, ...] = (problems,) if isinstance(problems, Problem) else tuple(problems)
        assert self.problems
        super().__init__(self.text())

    def text(self) -> str:
        return "\n".join(problem.text() for problem in self.problems)

    @property
    def exit_code(self) -> int:
        """The exit code of the earliest kind of problem: a wrong job file outranks a plan that does not fit."""
        return EXIT_CODES[min(problem.code[1] for problem in self.problems)]


# --- E1xx: the job file and the command line -------------------------------------------------------------------
_code(
    "E101",
    title="file not readable",
    when="The job file does not exist, is a folder or may not be read.",
    remedy="Check the path and its permissions.",
)
_code(
    "E102",
    title="not YAML",
    when="The text cannot be parsed as one YAML document of plain values.",
    remedy="Mend the line that is named; tabs, several documents, tags, anchors and aliases are refused.",
)
_code("E103", title="duplicate key", when="The same key stands twice in one mapping.", remedy="Keep one of the two lines.")
_code(
    "E104", title="unknown key", when="A key is not part of the job file.", remedy="Use the suggested key or remove the line."
)
_code("E105", title="wrong type", when="A value has another type than the field.", remedy="Write a value of the named type.")
_code(
    "E106",
    title="value out of range",
    when="A value is of the right type but outside of what can work.",
    remedy="Use a value inside the named bounds.",
)
_code("E107", title="missing field", when="A field that only the user can know is absent.", remedy="Add the field.")
_code("E108", title="unknown value", when="A value is not one of the allowed words.", remedy="Use one of the listed words.")
_code(
    "E109",
    title="fields exclude each other",
    when="Two fields contradict each other or one is needed by the other.",
    remedy="Keep the one that you mean.",
)
_code(
    "E110",
    title="stage chain is broken",
    when="`from` or `reward` names no stage, a later one, itself, or one that hands on the wrong kind of model.",
    remedy="Name an earlier stage of the right kind.",
)
_code("E111", title="usage", when="The command line is not understood.", remedy="See `launcher COMMAND --help`.")
_code(
    "E112",
    title="override not understood",
    when="A --set override names no field or has no value.",
    remedy="Write --set path.to.field=value, with stages by their name.",
)
_code(
    "E113",
    title="no such run",
    when="RUN is no run folder, run id or job name below the runs folder.",
    remedy="`launcher status` lists the runs that are there.",
)

_code(
    "E114",
    title="local path not usable",
    when="A model, tokenizer, data or host file named in the job does not exist, may not be read, or is of the wrong kind.",
    remedy="Correct the path; it is relative to the job file.",
)
_code(
    "E115",
    title="field without effect",
    when="A field is given that changes nothing beside the others.",
    remedy="Remove it.",
)
_code(
    "E116",
    title="hostfile not understood",
    when="A line of the hostfile is not `host slots=N`, or a host stands twice.",
    remedy="Write one `host slots=N` a line.",
)
_code(
    "E117",
    title="sizes of the new model do not fit",
    when="Heads do not divide the width or each other, or a head cannot take the family's positions.",
    remedy="Use the named sizes.",
)
_code(
    "E118",
    title="environment variable refused",
    when="cluster.env sets a variable that would run foreign code or that looks like a secret.",
    remedy="Remove it from the job file; ranks inherit what the shell exports.",
)
_code(
    "E119",
    title="file is there already",
    when="A file that would be written exists.",
    remedy="Choose another place, or say --force.",
)
_code(
    "E120",
    title="stage named that is not there",
    when="--stage or STAGE names no stage of the job.",
    remedy="Use one of the listed stages.",
)

# --- E2xx: the plan ------------------------------------------------------------------------------------------------
_code(
    "E121",
    title="price file not understood",
    when="A field of the file that cluster.prices names is unknown or has a value that it cannot have.",
    remedy="Use the fields and bounds that are named.",
)
_code(
    "E201",
    title="degrees do not fit the ranks",
    when="tensor x pipeline x sequence does not divide the number of ranks.",
    remedy="Use the degrees that are named, or another number of ranks.",
)
_code(
    "E202",
    title="offload to NVMe not usable",
    when="Below ZeRO 3; parameters in fp32, of ppo, 4-bit, small or beside hpz; nvme_path missing, relative or without use.",
    remedy="Offload to NVMe at ZeRO 3, parameters in bf16, with an absolute nvme_path; or offload to cpu.",
)
_code(
    "E203",
    title="offload without effect",
    when="DeepSpeed would ignore the offload, or change the optimizer without offloading, or nothing would leave the device.",
    remedy="Use what is named, or leave the offload out.",
)
_code(
    "E204",
    title="batch arithmetic",
    when="global is not micro x accumulation x data-parallel for any whole accumulation, nor for any degrees that the plan may"
    " choose.",
    remedy="Use one of the nearest numbers that are named, or leave batch.micro out.",
)
_code(
    "E205",
    title="precision not usable here",
    when="The device cannot train in it, DeepSpeed trains wrongly with it at this ZeRO stage, or tf32 has no effect.",
    remedy="Use the precision or ZeRO stage that is named, or leave it out.",
)
_code(
    "E206",
    title="layer widths that nf4 gets wrong",
    when="A layer's input width is a multiple of 16 and not of 64: on a CPU bitsandbytes would compute with wrong weights.",
    remedy="Change model.new, or leave model.quantize out.",
)
_code(
    "E207",
    title="longer than the model's positions",
    when="data.max_tokens is above the number of positions of the model.",
    remedy="Lower data.max_tokens.",
)
_code(
    "E208",
    title="prompt and answer longer than the model's positions",
    when="data.max_tokens plus max_new_tokens of a ppo stage is above the positions of the model.",
    remedy="Lower one of the two.",
)
_code(
    "E209",
    title="attention kernel not usable here",
    when="flash_attention_2 needs a CUDA device of Ampere or newer and 16-bit precision.",
    remedy="Leave model.attention out.",
)
_code(
    "E210",
    title="no plan fits",
    when="No allowed combination of ZeRO stage, checkpointing, offload and micro-batch fits into the memory of a rank.",
    remedy="Make the smallest change that is named.",
)
_code(
    "E211",
    title="disk too small for the plan",
    when="The planned checkpoints and artifacts are larger than what is free on the disk of the run folder.",
    remedy="Keep fewer checkpoints, free space, or choose another disk with --runs.",
)
_code(
    "E212",
    title="model family not supported",
    when="model_type in config.json is missing, or is in no table and no decoder of alike attention blocks that the installed"
    " transformers builds: it has experts, layers of other kinds, an encoder, pictures, or code of its own (auto_map).",
    remedy="Use a model of a family that is listed, or a plain decoder.",
)
_code(
    "E213",
    title="config.json broken",
    when="The model's config.json or its tokenizer.json is no JSON object, or a field is missing or cannot be what it is.",
    remedy="Use the file that belongs to the weights.",
)
_code(
    "E214",
    title="adapter finds nothing",
    when="model.adapter.targets names a module that the model's blocks do not have.",
    remedy="Use the listed names, or all-linear.",
)
_code(
    "E215",
    title="no gain",
    when="Only in `plan --all`: a candidate was not tried because a cheaper one does the same.",
    remedy="Ask for it in `parallel` to have it all the same.",
)
_code(
    "E216",
    title="GPU to plan for",
    when="cluster.gpu names no GPU of the catalogue, comes without a number of ranks, or is not what this machine has.",
    remedy="Use a name that is listed, with cluster.slots; to run here, remove it.",
)
_code(
    "E217",
    title="tensor degree does not fit the model",
    when="parallel.tensor does not divide the attention heads, the key/value heads or the columns of the MLP.",
    remedy="Use the nearest degree that is named.",
)
_code(
    "E218",
    title="sequence degree not usable here",
    when="parallel.sequence does not suit the heads, or stands beside a tensor or pipeline degree, packing, eager attention"
    " or a sliding window.",
    remedy="Use what is named, or sequence: 1.",
)
_code(
    "E219",
    title="pipeline not usable here",
    when="More pipeline stages than blocks, or a ZeRO stage other than 1.",
    remedy="Use what is named, or pipeline: 1.",
)
_code(
    "E220",
    title="stage cannot be cut",
    when="A ppo stage or a 4-bit base is to run with a tensor, pipeline or sequence degree above 1.",
    remedy="Give the stage a `parallel` block of its own with degrees of 1.",
)
_code(
    "E221",
    title="parallel setting without effect",
    when="hpz, quantized communication, an offload ratio or a balance is asked for where DeepSpeed does not read it.",
    remedy="Remove it, or use what is named.",
)
_code(
    "E222",
    title="family for planning only",
    when="The model's family can be planned for and not trained yet, and the job is to run; an adapter is asked for on a"
    " model with experts; or rewards of a family for which there is no classifier.",
    remedy="Train a model of the family that is named, or `launcher plan` with cluster.gpu and cluster.slots.",
)

_code(
    "E223",
    title="degree needs a known family",
    when="A tensor, pipeline or sequence degree is asked for with a model whose family is in no table.",
    remedy="Leave the degrees at 1: data parallelism with ZeRO trains it.",
)

# --- E3xx: DeepSpeed configs ---------------------------------------------------------------------------------------
_code(
    "E301",
    title="not JSON",
    when="The DeepSpeed config cannot be parsed as one JSON object.",
    remedy="Mend the line that is named; comments and trailing commas are no JSON.",
)
_code(
    "E302",
    title="duplicate key in a DeepSpeed config",
    when="The same key stands twice in one object.",
    remedy="Keep one of the two.",
)
_code(
    "E303",
    title="key that DeepSpeed ignores",
    when="DeepSpeed does not know the key and says nothing.",
    remedy="Use the suggested key or remove the line.",
)
_code(
    "E304",
    title="key that DeepSpeed refuses",
    when="DeepSpeed does not know the key and stops with an error.",
    remedy="Use the suggested key or remove the line.",
)
_code(
    "E305",
    title="value that DeepSpeed refuses",
    when="A value has the wrong type or range.",
    remedy="Use a value that is named.",
)
_code(
    "E306",
    title="removed feature",
    when="This version of DeepSpeed stops on the key, even with enabled: false.",
    remedy="Remove the key.",
)
_code(
    "E307",
    title="batch sizes contradict each other",
    when="train_batch_size is not micro x accumulation x ranks for any number of ranks, or none of the sizes is given.",
    remedy="Give two of the three, or make the three agree.",
)
_code(
    "E308",
    title="combination that trains wrongly",
    when="DeepSpeed accepts the combination and computes something else.",
    remedy="Use the ZeRO stage that is named.",
)
_code(
    "E309",
    title="setting without effect in this combination",
    when="DeepSpeed accepts the setting and ignores it in this combination.",
    remedy="Use the ZeRO stage that is named, or remove the line.",
)
_code(
    "E310",
    title="auto where DeepSpeed reads it",
    when="DeepSpeed has no auto: it stops there, or silently takes its default.",
    remedy="Write the number out.",
)
_code(
    "E311",
    title="unknown optimizer or scheduler",
    when="The type is none that DeepSpeed or torch has under this name.",
    remedy="Use the suggested name.",
)
_code(
    "E312",
    title="value that means something else",
    when="DeepSpeed accepts the value and understands another thing.",
    remedy="Use a value that is named.",
)
_code(
    "E313",
    title="combination that DeepSpeed refuses",
    when="Two settings exclude each other.",
    remedy="Keep one of the two.",
)
_code(
    "E351",
    title="deprecated key (warning)",
    when="The key still works and has a new name.",
    remedy="Use the new name.",
)
_code(
    "E352",
    title="auto that only transformers fills in (warning)",
    when="transformers' Trainer replaces the value; DeepSpeed itself does not understand it.",
    remedy="Write the number out.",
)
_code(
    "E353",
    title="section that acts elsewhere (warning)",
    when="The section has an effect only together with code that reads it.",
    remedy="Remove it if the code does not.",
)
_code(
    "E354",
    title="other than it looks (warning)",
    when="The setting works and does something that its name does not say.",
    remedy="Read the sentence and decide.",
)

# --- E4xx: the machine or cluster is not ready ---------------------------------------------------------------------
_code(
    "E401",
    title="backend not built yet",
    when="cluster.backend names a kind of cluster that this version cannot start ranks on.",
    remedy="Use backend: local, or start the rendered commands by hand.",
)
_code(
    "E402",
    title="more slots than devices",
    when="cluster.slots or the hostfile asks for more ranks than this machine can hold.",
    remedy="Lower cluster.slots, or leave it out.",
)
_code(
    "E403",
    title="hostfile does not fit the backend",
    when="The hostfile cannot be read, or names other hosts than this one for backend local.",
    remedy="Name only localhost, or leave the hostfile out.",
)
_code(
    "E404",
    title="run folder not writable",
    when="The runs folder cannot be made or written.",
    remedy="Choose another folder with --runs or LAUNCHER_RUNS.",
)
_code(
    "E406",
    title="no free port",
    when="No port for the ranks to meet on could be bound on this machine.",
    remedy="End what holds the ports, or allow binding on 127.0.0.1.",
)
_code(
    "E407",
    title="package missing or too old",
    when="A package that the ranks import is not installed in this Python, or in a version that is not supported.",
    remedy="Install the named version.",
)
_code(
    "E408",
    title="path is gone",
    when="A local model, tokenizer or data path of the job does not exist or cannot be read.",
    remedy="Restore the path, or correct it in the job file.",
)
_code(
    "E409",
    title="not enough memory free",
    when="Less memory is free on this machine than the plan needs at its peak.",
    remedy="End what uses it, or plan smaller: fewer slots, a smaller micro-batch.",
)
_code(
    "E410",
    title="GPU not usable",
    when="A GPU is present but its driver does not answer, or CUDA_VISIBLE_DEVICES cannot be understood.",
    remedy="Mend the driver, or set CUDA_VISIBLE_DEVICES to numbers of GPUs that are there.",
)
_code(
    "E411",
    title="model config not readable",
    when="config.json of model.source, or the tokenizer's file, is missing, may not be read or cannot be fetched from the hub.",
    remedy="Check the path or the hub id, and the network or the login.",
)
_code(
    "E412",
    title="environment name is taken",
    when="cluster.env sets a variable that the launcher itself sets for every rank.",
    remedy="Remove the line.",
)
_code(
    "E413",
    title="hub not reachable",
    when="A file of model.source or model.tokenizer is not in the cache, and the Hugging Face hub cannot be reached.",
    remedy="Check the network, or name a local folder.",
)
_code(
    "E414",
    title="file not usable",
    when="The system refuses a file or folder to a command: its permissions, a full or read-only disk, a damaged file system.",
    remedy="Mend its permissions or the disk, or name another place.",
)
_code(
    "E415",
    title="NVMe folder not usable",
    when="The folder of offload.nvme_path is not there on this machine, cannot be written, or has too little room.",
    remedy="Make it on a fast local disk with enough room, or name another one.",
)

_code(
    "E416",
    title="calibration not usable",
    when="A file of <runs>/calibration/, from which plans take measured speeds or scales, is damaged or holds what it cannot.",
    remedy="Measure again with `launcher calibrate`, or remove the file.",
)

_code(
    "E417",
    title="host not reachable",
    when="A host of the job does not answer over ssh, its name is not known, or it was silent for longer than its lease.",
    remedy="Check the name, the network and sshd; `launcher doctor` looks at every host at once.",
)
_code(
    "E418",
    title="host key not known",
    when="The key that a host shows is not in known_hosts, or is another one than there.",
    remedy="Compare and add the key. A changed key of a host that was not set up anew is a warning to be taken seriously.",
)
_code(
    "E419",
    title="login refused",
    when="A host does not accept the user or the key.",
    remedy="Put your public key there, or name user and key for the host in ~/.ssh/config.",
)
_code(
    "E420",
    title="host has no such launcher",
    when="Python or zerolaunch is missing on a host, or is of another version than here.",
    remedy="Install the same version in the same place on every host, or name the Python in cluster.python.",
)
_code(
    "E421",
    title="model could not be measured",
    when="The process that builds a model of a family of no table, without weights, failed or took too long.",
    remedy="Mend what its last lines say: torch and transformers must be importable in this Python.",
)
_code(
    "E422",
    title="family not measured yet",
    when="The model's family is in no table of the plan, and a command that starts no process (`validate`) cannot measure it.",
    remedy="Let `launcher plan` measure it once; its answer is kept in the runs folder.",
)
_code(
    "E424",
    title="machine is being measured",
    when="Another `launcher calibrate` measures under the same runs folder.",
    remedy="Wait for it, or end it with the command that is named.",
)

_code(
    "E423",
    title="hosts not asked",
    when="A command that starts no process (`validate`) cannot tell what the hosts of backend ssh are.",
    remedy="Let `launcher plan` ask them, or plan away from them with cluster.gpu.",
)

_code(
    "E425",
    title="other versions on a host",
    when="Python, a package that ranks import, or the NVIDIA driver is of another version than on most hosts. Other"
    " packages, the last number of Python's version and that of a driver only warn.",
    remedy="Install the same environment on every host, with the command that is named.",
)
_code(
    "E426",
    title="other code on a host",
    when="The launcher's own files are not the same on all hosts, or not those of this machine.",
    remedy="Install the very same zerolaunch everywhere, or put its folder on the shared one.",
)
_code(
    "E427",
    title="other user on a host",
    when="The login on a host is as another user than on most: files of the one are not the other's.",
    remedy="Name the user in ~/.ssh/config.",
)
_code(
    "E428",
    title="clock is off",
    when="A host's clock is more than 10 s away from the middle of all clocks; from 1 s on it is only said.",
    remedy="Let a time server set it.",
)
_code(
    "E429",
    title="limit too low",
    when="A process may open too few files or lock too little memory, or /dev/shm is too small. Only 64 MiB of /dev/shm"
    " beside several GPUs stop a run.",
    remedy="Raise the limit as the hint says.",
)
_code(
    "E430",
    title="hosts do not reach each other",
    when="A host cannot connect to another one on a port where ranks would meet.",
    remedy="Open the ports between the hosts, in their firewalls and in the cloud's.",
)
_code(
    "E431",
    title="name leads elsewhere",
    when="On a host, the name of another one leads to itself, to a third one, or to where that host is not met; or its"
    " own name leads to 127.0.0.1. A name that a host does not know only warns.",
    remedy="Mend /etc/hosts or DNS on the host that is named.",
)
_code(
    "E432",
    title="folder not shared",
    when="A host does not see a file that was written here in the folder of the runs, or its own file is not seen here. A"
    " disk of its own is only said: what a stage needs is sent to it. One that is shared by halves stops a run.",
    remedy="Mount the same folder on all hosts and here, and name it with --runs.",
)
_code(
    "E433",
    title="path not usable on a host",
    when="A local path of the job is not there on a host, or may not be read, or written where the ranks write.",
    remedy="Mount or copy it there under the same path.",
)
_code(
    "E434",
    title="GPUs not alike or not sound",
    when="A GPU does not answer, has damaged memory or is in use; or a host has other GPUs than most. Only the first"
    " two of these stop a run.",
    remedy="Follow the hint; leave a damaged host out.",
)
_code(
    "E435",
    title="processes of an earlier run",
    when="Processes of a run that nobody controls are alive on a host. It is only said; a run ends its own when it is resumed.",
    remedy="End them if they are not wanted.",
)
_code(
    "E436",
    title="ranks did not meet",
    when="The ranks that `doctor` started did not find each other, or did not finish a collective in time.",
    remedy="See what each rank said; the hint names the log.",
)
_code(
    "E437",
    title="slow connection",
    when="A host sends less than half of what the usual host sends.",
    remedy="Look at its cable, its switch port and the card that is used.",
)
_code(
    "E438",
    title="disk nearly full",
    when="Little space or few files are left where checkpoints go. Only a disk that takes hardly any file stops a run;"
    " space is judged by the plan (E211).",
    remedy="Free some, or choose another folder for the runs.",
)
_code(
    "E439",
    title="no such network card",
    when="GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME names a card that a host does not have.",
    remedy="Name a card that every host has, or leave it out.",
)
_code(
    "E440",
    title="place of a node not known",
    when="A program that is started on every node finds no variable of a scheduler that tells which node this is, or one that"
    " makes no sense.",
    remedy="Start it by `srun --ntasks-per-node=1`, mpirun, or with the files that `launcher render` wrote.",
)
_code(
    "E441",
    title="nodes differ from the plan",
    when="A scheduler has started another number of nodes than the plan is for, or a node without ranks in the stage.",
    remedy="Start exactly as many, or change cluster.nodes and render again.",
)

# --- E50x-E52x: a run (launch, ranks, artifacts) -------------------------------------------------------------------
_code(
    "E501",
    title="rank killed by a signal",
    when="A rank ended by a signal, such as SIGKILL of the kernel when memory runs out.",
    remedy="Read the log that is named; `launcher resume` goes on from the last checkpoint.",
)
_code(
    "E502",
    title="rank failed",
    when="A rank ended with an error and left no description of its own.",
    remedy="Read the log that is named.",
)
_code(
    "E503",
    title="launcher process ended early",
    when="The deepspeed launcher ended, but not every rank left its success marker.",
    remedy="`launcher resume` goes on from the last checkpoint.",
)
_code(
    "E504",
    title="world size differs",
    when="A rank saw another number of ranks than the plan has.",
    remedy="Do not start ranks by other means into the same run; resume.",
)
_code(
    "E505",
    title="artifact damaged",
    when="A file of a finished stage is missing, added or changed against its manifest.",
    remedy="Restore the file, or remove the artifact folder and resume: the stage is then redone.",
)
_code(
    "E506",
    title="gate not held",
    when="A stage finished below the figure that its gate demands.",
    remedy="Improve the stage, or lower the gate if the figure is good enough.",
)
_code(
    "E507",
    title="run is in use",
    when="Another process of this or another host controls the run.",
    remedy="Wait for it, or end it with `launcher stop`.",
)
_code(
    "E508",
    title="prepare failed",
    when="The process that prepares data and models ended without saying why.",
    remedy="Read the log that is named.",
)
_code(
    "E509",
    title="parent stage has not finished",
    when="A stage cannot start because the stage that it starts from has handed on nothing.",
    remedy="Run the parent stage first.",
)
_code(
    "E510",
    title="run folder not readable",
    when="A file of the run folder is missing, damaged or was written by another version.",
    remedy="Start a new run, or use the version that wrote it.",
)
_code(
    "E511",
    title="processes would not end",
    when="Processes of the run are alive although they were told to stop and then killed.",
    remedy="Look at the processes that are named; a driver or file system may hold them.",
)

_code(
    "E513",
    title="run folder failed under the run",
    when="A file of the run folder could not be read or written while the run went on: a full, read-only or removed disk.",
    remedy="Free space or mend the folder, then resume.",
)
_code(
    "E514",
    title="detached controller ended",
    when="`run --detach` started a controller in the background, and it ended before it held the run.",
    remedy="Read the controller.log that is named.",
)

_code(
    "E520",
    title="node did not come, or is lost",
    when="Of the nodes that a scheduler starts one did not come in time, fell silent or was started anew, or node 0's name did"
    " not appear.",
    remedy="Look at its pod or machine. A new attempt goes on from the last checkpoint.",
)

# --- E53x-E54x: data and tokenizer, found by prepare ---------------------------------------------------------------
_code(
    "E530",
    title="data not found",
    when="A data file, folder or hub dataset does not exist or may not be read.",
    remedy="Check data.source; local paths are relative to the job file.",
)
_code(
    "E531",
    title="data file not readable",
    when="A data file is of no known kind, is damaged, or has changed while it was read.",
    remedy="Write the file again as JSONL, JSON, CSV, Parquet, Arrow or text.",
)
_code(
    "E532",
    title="columns do not fit",
    when="A column is missing, stands twice, or data.columns names one that is not there.",
    remedy="Map the names with data.columns: {ours: theirs}.",
)
_code(
    "E533",
    title="shape not clear",
    when="The columns fit several shapes or none, or rows of this shape cannot serve the stage.",
    remedy="Write data.shape, or use data of another shape.",
)
_code(
    "E534",
    title="bad row",
    when="A row cannot be used: broken JSON or UTF-8, a missing, empty or wrongly typed value, a prompt that holds its answer.",
    remedy="Mend the row that is named, or write data.bad_rows: skip.",
)
_code(
    "E535",
    title="too many bad rows",
    when="bad_rows is skip, but more than one row in ten, or every row, is bad.",
    remedy="Mend the data; the first reasons are listed.",
)
_code(
    "E536",
    title="no rows",
    when="A data file, split or side of the held-out split has no row.",
    remedy="Use data with rows, or change data.split or data.held_out.",
)
_code(
    "E537",
    title="every row is too long",
    when="No row is left after those longer than data.max_tokens are dropped.",
    remedy="Raise data.max_tokens; the longest lengths are listed.",
)
_code(
    "E538",
    title="too few rows for a step",
    when="There are fewer training rows than one optimizer step uses.",
    remedy="Lower batch.global (ppo: rollout), or use more data.",
)
_code(
    "E539",
    title="data option does not apply",
    when="A data option has no effect on this kind of source, such as split on a plain file.",
    remedy="Remove the option.",
)
_code(
    "E540",
    title="tokenizer not usable",
    when="The tokenizer cannot be loaded, is not a fast one, or has no end token.",
    remedy="Name another tokenizer in model.tokenizer.",
)
_code(
    "E541",
    title="chat template missing",
    when="The data are dialogues, and the tokenizer has no chat template.",
    remedy="Use data of shape prompt_completion, or a tokenizer with a chat template.",
)
_code(
    "E542",
    title="chat template does not fit",
    when="The template hides where answers stand, or answers would be trained without their end token.",
    remedy="Use a tokenizer whose template marks answers and ends them with the end token.",
)
_code(
    "E543",
    title="no padding token",
    when="The tokenizer has no padding token apart from its end token, and the model has no spare row for one.",
    remedy="Use a tokenizer with its own padding token.",
)
_code(
    "E544",
    title="vocabulary larger than the model",
    when="The tokenizer has more entries than the model has embedding rows.",
    remedy="Use the tokenizer that belongs to the model.",
)
_code(
    "E545",
    title="longer than the model's positions",
    when="data.max_tokens, or prompt plus answer in ppo, exceeds the positions of the model.",
    remedy="Lower data.max_tokens or max_new_tokens.",
)
_code(
    "E546",
    title="model not usable",
    when="The model's folder is missing or has no readable config.json or no safetensors weights.",
    remedy="Name a Hugging Face folder with config.json and *.safetensors.",
)
_code(
    "E547",
    title="hub not reachable",
    when="A model, tokenizer or dataset cannot be fetched from the Hugging Face hub.",
    remedy="Check the id, the network and the access rights, or use a local folder.",
)

# --- E55x-E56x: training stages on the nodes -----------------------------------------------------------------------
_code(
    "E550",
    title="ranks do not meet",
    when="The number of ranks that were started is not the number that the plan asks for.",
    remedy="Start the stage with the rendered command and hostfile, or plan again for the ranks there are.",
)
_code(
    "E551",
    title="another rank was lost",
    when="A rank waited for another one whose process had ended.",
    remedy="Look at the rank that failed first; this rank only noticed it.",
)
_code(
    "E552",
    title="engine differs from the plan",
    when="DeepSpeed or the trainer would work with other numbers than the plan: batch sizes, ZeRO stage, precision, clipping.",
    remedy="Render the run folder again; a hand-edited DeepSpeed config must agree with the stage order.",
)
_code(
    "E553",
    title="combination trains wrongly",
    when="A combination that DeepSpeed or a library accepts but trains wrongly, such as bf16 or fp16 at ZeRO 0.",
    remedy="Use the named setting instead.",
)
_code(
    "E554",
    title="loss is not a number",
    when="The loss or a gradient norm became NaN or infinite.",
    remedy="Lower the learning rate, raise the warm-up, or look at the rows of the named step.",
)
_code(
    "E555",
    title="out of memory",
    when="A rank found no memory left on its device: the plan's estimate was too low, or somebody else uses the device.",
    remedy="Lower batch.micro or data.max_tokens, or set parallel.checkpointing: full; then resume.",
)
_code(
    "E556",
    title="model does not fit its use",
    when="Weights are missing or left over beyond the expected head, or the pad token equals the end token.",
    remedy="Start from a causal language model of the same architecture with a tokenizer that has its own pad token.",
)
_code(
    "E557",
    title="quantised base not possible",
    when="The 4-bit base cannot be made: bitsandbytes is missing, or no layer was quantised.",
    remedy="Install zerolaunch[qlora], or train without quantize.",
)
_code(
    "E558",
    title="artifact does not verify",
    when="What a stage wrote to hand on has missing, empty or non-finite tensors, or does not give the same logits.",
    remedy="Nothing was handed on; the last checkpoint is kept. Resume the run.",
)
_code(
    "E559",
    title="packed rows see each other",
    when="The attention kernel of this model lets a packed row see the row before it.",
    remedy="Set packing: false, or another model.attention.",
)
_code(
    "E560",
    title="too few rows",
    when="A split is empty, so that nothing can be trained or measured.",
    remedy="Give more data, or another held_out.",
)
_code(
    "E561",
    title="checkpoint does not fit",
    when="A checkpoint verifies, but holds other weights than the stage trains, has gaps, or was written by another version.",
    remedy="Remove the checkpoint folder that is named and resume: the stage goes on from the one before, or starts again.",
)

_code(
    "E564",
    title="policy left the reference",
    when="In ppo the KL divergence to the reference passed kl_stop: the reward model has never seen such answers.",
    remedy="Raise kl_coef, give kl_target, or lower lr; resume goes on from the last checkpoint.",
)
_code(
    "E565",
    title="tokenizers differ",
    when="The reward model reads token numbers otherwise than the policy that it scores.",
    remedy="Train the reward model from the same model as the policy.",
)
_code(
    "E566",
    title="no such model to try or export",
    when="No stage of the run has finished and hands on a language model, or the stage named does not.",
    remedy="Name a finished stage with --stage, or resume the run first.",
)
_code(
    "E567",
    title="ranks that share a replica hold different rows",
    when="Two ranks of one replica (same tensor, pipeline or sequence group) were given other rows for the same step.",
    remedy="Check that all hosts see the same run folder and cache; resume from the last checkpoint.",
)
_code(
    "E568",
    title="operator not built",
    when="An operator of DeepSpeed in C++ (for NVMe, offload with a ratio, ZeRO++ quantisation) cannot be compiled here.",
    remedy="Install what the message names, or use a setting that needs no operator, such as offload.optimizer: cpu.",
)
_code(
    "E569",
    title="loss scale collapsed",
    when="In fp16 the loss scale fell to its minimum, and gradients still did not fit into 16 bits.",
    remedy="Use precision: bf16 or fp32; or lower lr, raise the warm-up, give clip a value.",
)
# --- E9xx: ours ----------------------------------------------------------------------------------------------------
_code(
    "E901",
    title="a bug in launcher",
    when="Something failed that is not the user's doing.",
    remedy="The traceback is in the file that is named; please report it.",
)
