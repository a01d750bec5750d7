"""(what was found) -> how the chosen plan stands: what binds it, and what the next best one would be. DERIVE, text only."""

from __future__ import annotations

from launcher.plan.candidate import Candidate
from launcher.plan.plan import Machine, Reason
from launcher.plan.search import Found
from launcher.units import bytes_text, short_seconds_text

ERROR = 0.07  # typical error of a predicted step time (docs/planner.md): closer plans cannot be told apart


def comparison_reasons(found: Found, *, machine: Machine) -> list[Reason]:
    """Nothing where no time is known. `machine`: the one that the job asks for, of which a plan may leave ranks out."""
    chosen, second = found.chosen, found.runner_up
    if chosen.time is None:
        return []
    if second is None:
        return [_binding(chosen), *_alone(found)]
    more = second.seconds / chosen.seconds - 1
    memory = second.peak_bytes - chosen.peak_bytes
    least = f"{bytes_text(abs(memory))} {'more' if memory > 0 else 'less'} memory"
    same = second.fit.ground.world == chosen.fit.ground.world
    ranks = "" if same else f" on {second.fit.ground.world} ranks"
    hours = f", {second.gpu_seconds / chosen.gpu_seconds - 1:+.0%} GPU time" if found.objective == "cost" and not same else ""
    text = f"next best is {second.text()}{ranks}: {short_seconds_text(second.seconds)} a step ({more:+.0%}{hours}), {least}"
    reasons = [_binding(chosen), Reason(code="next.best", text=text)]
    if same and abs(more) < ERROR and found.objective != "memory":
        text = (
            f"{more:+.0%} is below the {ERROR:.0%} by which a prediction is off: a run of some steps of each would tell"
            f" ({_job_text(second, chosen, machine)} for the other)"
        )
        reasons.append(Reason(code="next.too_close", text=text))
    return reasons


def _alone(found: Found) -> list[Reason]:
    """Nothing where the plan is the best of those that may fit."""
    if not found.front:
        return []
    others = any(item.code == "tie" for item in found.rejected)
    text = "no other plan that fits differs from it in time or memory" if others else "no other plan that is allowed fits"
    return [Reason(code="next.none", text=text)]


def _binding(chosen: Candidate) -> Reason:
    """The largest part of the step and of the memory."""
    assert chosen.time is not None
    part, seconds = max(chosen.time.parts.items(), key=lambda item: item[1])
    counted = {name: size for name, size in chosen.fit.memory.parts.items() if name != "calibration"}
    of_memory, size = max(counted.items(), key=lambda item: item[1])
    time = f"{part} takes {seconds / chosen.time.step_s:.0%} of a step"
    text = f"{time}; {of_memory.replace('_', ' ')}, {bytes_text(size)}, is the largest part of the peak"
    return Reason(code="bound.by", text=text)


def _job_text(one: Candidate, chosen: Candidate, machine: Machine) -> str:
    """What asks for it in a job, in YAML's flow style: its layout, and the ranks where not all of them are taken."""
    ground = one.fit.ground
    of_host, hosts = ground.machine.slots, ground.machine.nodes
    words = [f"parallel: {{{', '.join(_layout_words(one, chosen))}}}"]
    words += [f"cluster.slots: {of_host}"] if of_host != machine.slots else []
    words += [f"cluster.nodes: {hosts}"] if hosts != machine.nodes else []
    return " and ".join(f"`{word}`" for word in words)


def _layout_words(one: Candidate, chosen: Candidate) -> list[str]:
    """Where either plan offloads, the other must say what it does."""
    ground, rung = one.fit.ground, one.fit.rung
    degrees = {"tensor": ground.tp, "pipeline": ground.pp, "sequence": ground.sp}
    words = [f"{name}: {degree}" for name, degree in degrees.items() if degree > 1]
    words += [f"zero: {rung.zero}", f"checkpointing: {rung.checkpointing}"]
    places = {"optimizer": rung.offload_optimizer, "parameters": rung.offload_parameters}
    away = [f"{name}: {place}" for name, place in places.items() if place != "none"]
    away = away or (["optimizer: none"] if chosen.fit.rung.away else [])
    return words + ([f"offload: {{{', '.join(away)}}}"] if away else [])
