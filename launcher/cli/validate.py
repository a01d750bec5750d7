"""`launcher validate JOB`: every error of the job file and of its plan at once. Starts nothing, writes nothing."""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace

from launcher.cli.common import add_job, add_json, add_runs, runs_root, say, show, show_json
from launcher.errors import EXIT_DONE, LauncherError
from launcher.spec.load import open_job
from launcher.supervise.blueprints import NOT_MEASURED
from launcher.supervise.facts import NOT_ASKED
from launcher.supervise.planning import check

HUB_NOT_REACHABLE = "E413"
# The file is right as far as it can be told without asking or starting anybody.
NOT_CHECKED = (HUB_NOT_REACHABLE, NOT_MEASURED, NOT_ASKED)


def add_arguments(parser: ArgumentParser) -> None:
    add_job(parser)
    add_json(parser)
    add_runs(parser)


def run(args: Namespace) -> int:
    os.environ["HF_HUB_OFFLINE"] = "1"  # validate asks nobody: of a hub model it knows what the cache holds
    loaded = open_job(args.job, args.overrides)
    job, planned = loaded.job, True
    try:
        check(loaded, runs_root=runs_root(args))
    except LauncherError as error:
        if any(problem.code not in NOT_CHECKED for problem in error.problems):
            raise
        planned = False
        say("\n".join(f"not checked against the plan: {problem.where} {problem.what}" for problem in error.problems))
    if args.json:
        names = [stage.stage_name for stage in job.stages]
        show_json({"schema": 1, "job": job.name, "valid": True, "plan_checked": planned, "stages": names})
    else:
        show(f"{args.job}: {len(job.stages)} {'stage' if len(job.stages) == 1 else 'stages'}, valid")
    return EXIT_DONE
