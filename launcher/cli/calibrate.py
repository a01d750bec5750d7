"""`launcher calibrate`: measures this machine with the ranks that a plan would use; later plans take what was measured."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from datetime import UTC, datetime

from launcher.cli.common import add_json, add_runs, runs_root, say, show, show_json
from launcher.errors import EXIT_DONE, EXIT_STOPPED
from launcher.plan.explain import table
from launcher.rundir.folder import read_json
from launcher.spec.cluster import ClusterSpec
from launcher.supervise.facts import machine_here
from launcher.supervise.measuring import Measured, measure_machine
from launcher.supervise.stop import StopFlag, listening
from launcher.units import bytes_text, seconds_text, short_seconds_text


def add_arguments(parser: ArgumentParser) -> None:
    ranks = "ranks on this machine (default: its GPUs, or one CPU process for each core, at most 2)"
    parser.add_argument("--slots", metavar="N", type=_slots, help=ranks)
    add_json(parser)
    add_runs(parser)


def run(args: Namespace) -> int:
    root = runs_root(args)
    machine = machine_here(ClusterSpec(slots=args.slots), runs_root=root)
    say(f"measuring {machine.slots} {'GPUs' if machine.device == 'cuda' else 'CPU processes'}; other work on them falsifies it")
    with listening(StopFlag()) as stop:
        measured = measure_machine(machine, runs_root=root, now=datetime.now(UTC), stop=stop)
    if measured is None:
        say("stopped; nothing was written")
        return EXIT_STOPPED
    taken = measured.calibration.disturbed
    if taken:
        say(f"other programs took {taken:.0%} of the cores meanwhile: measure again when they have ended; plans say so")
    if args.json:
        show_json({"file": str(measured.path), **read_json(measured.path)})
    else:
        show(measured_text(measured))
    return EXIT_DONE


def measured_text(measured: Measured) -> str:
    """What was seen, then where plans find it."""
    figures = measured.figures
    rows = [("what", "size", "seconds", "speed")]
    for one in figures.products:
        speed = f"{2 * one.rows * one.columns * one.inner / one.seconds / 1e12:.3g} TFLOPS"
        rows.append((f"product, {one.precision}", f"{one.rows} x {one.inner} x {one.columns}", _short(one.seconds), speed))
    attention, loss = figures.attention, figures.loss
    size = f"{attention.rows} x {attention.tokens} tokens, {attention.heads} heads of {attention.head_dim}"
    rows.append((f"attention, {attention.precision}", size, _short(attention.forward_s + attention.backward_s), ""))
    for block in figures.blocks[:1]:
        size = f"{block.rows} x {block.tokens} tokens, {block.hidden} wide"
        rows.append((f"a block, {block.precision}", size, _short(block.seconds), ""))
    if loss is not None:
        rows.append((f"the loss, {loss.precision}", f"{loss.tokens} tokens, {loss.vocab} entries", _short(loss.seconds), ""))
    moved = [("memory", figures.memory.bytes, figures.memory.seconds)]
    if figures.host_copies is not None:
        copies = figures.host_copies
        moved += [("to the GPU", copies.bytes, copies.up_s), ("from the GPU", copies.bytes, copies.down_s)]
    moved += [(one.kind.replace("_", "-"), one.bytes, one.seconds) for one in figures.collectives]
    rows += [(name, bytes_text(size), _short(seconds), f"{size / seconds / 1e9:.3g} GB/s") for name, size, seconds in moved]
    adam = figures.adam
    speed = f"{adam.seconds / adam.parameters * 1e9:.2g} ns a parameter"
    rows.append(("Adam on the host", f"{adam.parameters} parameters", _short(adam.seconds), speed))
    kind = "CPU processes" if figures.device == "cpu" else figures.device
    head = f"{figures.world} {kind}, all at once, measured in {seconds_text(measured.seconds)}"
    return "\n".join([head, "", *table(rows), "", f"plans take it from {measured.path}"])


def _short(seconds: float) -> str:
    return short_seconds_text(seconds)


def _slots(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise ArgumentTypeError(f"{text!r} is not a number of ranks from 1 to 1024")
    return int(text)
