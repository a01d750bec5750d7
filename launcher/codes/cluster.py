"""E4xx: the machine, the cluster, and files that are needed before the start."""

from __future__ import annotations

from launcher.codes.info import CodeInfo

CODES: dict[str, CodeInfo] = {
    "E401": CodeInfo(
        title="nodes are not started from here",
        when="`run` with a backend whose own commands start the nodes: kubernetes, skypilot, dstack.",
        remedy="Render the job, and hand what was written to kubectl, sky or dstack.",
    ),
    "E402": CodeInfo(
        title="more slots than devices",
        when="cluster.slots or the hostfile asks for more ranks than this machine can hold.",
        remedy="Lower cluster.slots, or leave it out.",
    ),
    "E403": CodeInfo(
        title="hostfile does not fit the backend",
        when="The hostfile cannot be read, or names other hosts than this one for backend local.",
        remedy="Name only localhost, or leave the hostfile out.",
    ),
    "E404": CodeInfo(
        title="run folder not writable",
        when="The runs folder cannot be made or written.",
        remedy="Choose another folder with --runs or LAUNCHER_RUNS.",
    ),
    "E406": CodeInfo(
        title="no free port",
        when="No port for the ranks to meet on could be bound, other programs took three of them one after the other, or one"
        " holds the port that the job names.",
        remedy="End what holds the port on the host that is named, name another one, or allow binding on 127.0.0.1.",
    ),
    "E407": CodeInfo(
        title="package missing or too old",
        when="A package that the ranks import is not installed in this Python, or in a version that is not supported.",
        remedy="Install the named version.",
    ),
    "E408": CodeInfo(
        title="path is gone",
        when="A local model, tokenizer or data path of the job does not exist or cannot be read.",
        remedy="Restore the path, or correct it in the job file.",
    ),
    "E409": CodeInfo(
        title="not enough memory free",
        when="Less memory is free on this machine than the plan needs at its peak.",
        remedy="End what uses it, or plan smaller: fewer slots, a smaller micro-batch.",
    ),
    "E410": CodeInfo(
        title="GPU not usable",
        when="A GPU is present but its driver does not answer, or CUDA_VISIBLE_DEVICES cannot be understood.",
        remedy="Mend the driver, or set CUDA_VISIBLE_DEVICES to numbers of GPUs that are there.",
    ),
    "E411": CodeInfo(
        title="model config not readable",
        when="config.json of model.source, or the tokenizer's file, is missing, may not be read or cannot be fetched from the"
        " hub.",
        remedy="Check the path or the hub id, and the network or the login.",
    ),
    "E412": CodeInfo(
        title="environment name is taken",
        when="cluster.env sets a variable that the launcher itself sets for every rank.",
        remedy="Remove the line.",
    ),
    "E413": CodeInfo(
        title="hub not reachable",
        when="A file of model.source or model.tokenizer is not in the cache, and the Hugging Face hub cannot be reached.",
        remedy="Check the network, or name a local folder.",
    ),
    "E414": CodeInfo(
        title="file not usable",
        when="The system refuses a file or folder to a command: its permissions, a full or read-only disk, a damaged file"
        " system.",
        remedy="Mend its permissions or the disk, or name another place.",
    ),
    "E415": CodeInfo(
        title="NVMe folder not usable",
        when="The folder of offload.nvme_path is not there on this machine, cannot be written, or has too little room.",
        remedy="Make it on a fast local disk with enough room, or name another one.",
    ),
    "E416": CodeInfo(
        title="calibration not usable",
        when="A file of <runs>/calibration/, from which plans take measured speeds or scales, is damaged or holds what it"
        " cannot.",
        remedy="Measure again with `launcher calibrate`, or remove the file.",
    ),
    "E417": CodeInfo(
        title="host not reachable",
        when="A host of the job does not answer over ssh, its name is not known, it was silent for longer than its lease, or it"
        " was started anew.",
        remedy="Check the name, the network and sshd; `launcher doctor` looks at every host at once.",
    ),
    "E418": CodeInfo(
        title="host key not known",
        when="The key that a host shows is not in known_hosts, or is another one than there.",
        remedy="Compare and add the key. A changed key of a host that was not set up anew is a warning to be taken seriously.",
    ),
    "E419": CodeInfo(
        title="login refused",
        when="A host does not accept the user or the key.",
        remedy="Put your public key there, or name user and key for the host in ~/.ssh/config.",
    ),
    "E420": CodeInfo(
        title="host has no such launcher",
        when="Python or zerolaunch is missing on a host, or is of another version than here.",
        remedy="Install the same version in the same place on every host, or name the Python in cluster.python.",
    ),
    "E421": CodeInfo(
        title="model could not be measured",
        when="The process that builds a model of a family of no table, without weights, failed or took too long.",
        remedy="Mend what its last lines say: torch and transformers must be importable in this Python.",
    ),
    "E422": CodeInfo(
        title="family not measured yet",
        when="The model's family is in no table of the plan, and a command that starts no process (`validate`) cannot measure"
        " it.",
        remedy="Let `launcher plan` measure it once; its answer is kept in the runs folder.",
    ),
    "E424": CodeInfo(
        title="machine is being measured",
        when="Another `launcher calibrate` measures under the same runs folder.",
        remedy="Wait for it, or end it with the command that is named.",
    ),
    "E423": CodeInfo(
        title="hosts not asked",
        when="A command that starts no process (`validate`) cannot tell what the hosts of backend ssh are.",
        remedy="Let `launcher plan` ask them, or plan away from them with cluster.gpu.",
    ),
    "E425": CodeInfo(
        title="other versions on a host",
        when="Python, a package that ranks import, or the NVIDIA driver is of another version than on most hosts, or than on"
        " the first of the nodes that a scheduler starts. Other packages, the last number of Python's version and that of a"
        " driver only warn.",
        remedy="Install the same environment on every host, with the command that is named.",
    ),
    "E426": CodeInfo(
        title="other code on a host",
        when="The launcher's own files are not the same on all hosts, or not those of this machine or of the first node.",
        remedy="Install the very same zerolaunch everywhere, or put its folder on the shared one.",
    ),
    "E427": CodeInfo(
        title="other user on a host",
        when="The login on a host is as another user than on most: files of the one are not the other's.",
        remedy="Name the user in ~/.ssh/config.",
    ),
    "E428": CodeInfo(
        title="clock is off",
        when="A host's clock is more than 10 s away from the middle of all clocks; from 1 s on it is only said.",
        remedy="Let a time server set it.",
    ),
    "E429": CodeInfo(
        title="limit too low",
        when="A process may open too few files or lock too little memory, or too little of /dev/shm is free. Only"
        " 64 MiB of it or less beside several GPUs stop a run.",
        remedy="Raise the limit as the hint says.",
    ),
    "E430": CodeInfo(
        title="hosts do not reach each other",
        when="A host cannot connect to another one on a port where ranks would meet.",
        remedy="Open the ports between the hosts, in their firewalls and in the cloud's.",
    ),
    "E431": CodeInfo(
        title="name leads elsewhere",
        when="On a host, the name of another one leads to itself, to a third one, or to where that host is not met; or its"
        " own name leads to 127.0.0.1 or to a network on which the others do not reach it; or two hosts of the job are one"
        " machine. A name that a host does not know only warns, and so does an own name of another network that is reached.",
        remedy="Mend /etc/hosts or DNS on the host that is named, and name each machine once.",
    ),
    "E432": CodeInfo(
        title="folder not shared",
        when="A host does not see a file that was written here in the folder of the runs, or its own file is not seen here. A"
        " disk of its own is only said: what a stage needs is sent to it. One that is shared by halves stops a run.",
        remedy="Mount the same folder on all hosts and here, and name it with --runs.",
    ),
    "E433": CodeInfo(
        title="path not usable on a host",
        when="A local path of the job is not there on a host, or may not be read, or written where the ranks write.",
        remedy="Mount or copy it there under the same path.",
    ),
    "E434": CodeInfo(
        title="GPUs not alike or not sound",
        when="A GPU does not answer, has damaged memory or is in use; or a host has other GPUs than most. Only the first"
        " two of these stop a run.",
        remedy="Follow the hint; leave a damaged host out.",
    ),
    "E435": CodeInfo(
        title="processes of an earlier run",
        when="Processes of a run that nobody controls are alive on a host. It is only said; a run ends its own when it is"
        " resumed.",
        remedy="End them if they are not wanted.",
    ),
    "E436": CodeInfo(
        title="ranks did not meet",
        when="The ranks that `doctor` started did not find each other, or did not finish a collective in time.",
        remedy="See what each rank said; the hint names the log.",
    ),
    "E437": CodeInfo(
        title="slow connection",
        when="A host sends less than half of what the usual host sends.",
        remedy="Look at its cable, its switch port and the card that is used.",
    ),
    "E438": CodeInfo(
        title="disk nearly full",
        when="Little space or few files are left where checkpoints go. Only a disk that takes hardly any file stops a run;"
        " space is judged by the plan (E211).",
        remedy="Free some, or choose another folder for the runs.",
    ),
    "E439": CodeInfo(
        title="no such network card",
        when="GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME names a card that a host does not have.",
        remedy="Name a card that every host has, or leave it out.",
    ),
    "E440": CodeInfo(
        title="place of a node not known",
        when="A program that is started on every node finds no variable of a scheduler that tells which node this is, or one"
        " that"
        " makes no sense.",
        remedy="Start it by `srun --ntasks-per-node=1`, mpirun, or with the files that `launcher render` wrote.",
    ),
    "E441": CodeInfo(
        title="nodes differ from the plan",
        when="A scheduler has started another number of nodes than the plan is for, or a node without ranks in the stage.",
        remedy="Start exactly as many, or change cluster.nodes and render again.",
    ),
    "E442": CodeInfo(
        title="queue refuses or does not answer",
        when="A program of SLURM (sbatch, squeue, scancel) is not installed, failed, or did not answer.",
        remedy="Run it where SLURM's programs are; correct cluster.slurm where it names what the cluster does not have.",
    ),
    "E443": CodeInfo(
        title="path that the queue cannot be told",
        when="The run folder's path has a quote, a backslash or a control character in it, which a batch script cannot hold.",
        remedy="Choose another folder with --runs or LAUNCHER_RUNS.",
    ),
    "E444": CodeInfo(
        title="secret is not set",
        when="cluster.secrets names a variable that the shell of `launcher run` does not have.",
        remedy="Export it in that shell, or remove the name.",
    ),
    "E445": CodeInfo(
        title="program that starts the nodes is missing",
        when="The job's nodes are started by sbatch, srun or mpirun, which this machine does not have.",
        remedy="Run it on a login node or inside an allocation; or install Open MPI.",
    ),
}
