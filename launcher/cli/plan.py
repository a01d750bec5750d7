"""`launcher plan JOB`: what would run and why. Starts and writes nothing, unless the model's family is to be measured first."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from launcher.cli.common import add_job, add_json, add_runs, runs_root, show, show_json
from launcher.errors import EXIT_DONE
from launcher.plan.explain import plan_text
from launcher.spec.load import open_job
from launcher.supervise.clusters import asked_hosts
from launcher.supervise.drafting import drafted_shapes
from launcher.supervise.planning import plan_of


def add_arguments(parser: ArgumentParser) -> None:
    add_job(parser)
    add_json(parser)
    add_runs(parser)
    parser.add_argument("--all", action="store_true", help="list the candidates that were not taken, each with the reason")


def run(args: Namespace) -> int:
    root = runs_root(args)
    plan = plan_of(open_job(args.job, args.overrides), runs_root=root, unknown=drafted_shapes(root), remote=asked_hosts(root))
    if args.json:
        show_json(plan.as_dict())
    else:
        show(plan_text(plan, rejected=args.all))
    return EXIT_DONE
