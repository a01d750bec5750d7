"""(what was found) -> how the chosen plan stands: what binds it, and what the next best one would be. DERIVE, text only."""

from __future__ import annotations

from launcher.plan.plan import Reason
from launcher.plan.search import Candidate, Found
from launcher.units import bytes_text, short_seconds_text

ERROR = 0.07  # typical error of a predicted step time (docs/planner.md): closer plans cannot be told apart


def comparison_reasons(found: Found) -> list[Reason]:
    """Nothing where no time is known."""
    chosen, second = found.chosen, found.runner_up
    reasons = [_binding(chosen)] if chosen.time else []
    if second is None or second.time is None or chosen.time is None:
        return reasons
    more = second.seconds / chosen.seconds - 1
    memory = second.fit.memory.peak_bytes - chosen.fit.memory.peak_bytes
    least = f"{bytes_text(abs(memory))} {'more' if memory > 0 else 'less'} memory"
    same = second.fit.ground.world == chosen.fit.ground.world
    ranks = "" if same else f" on {second.fit.ground.world} ranks"
    text = f"next best is {second.text()}{ranks}: {short_seconds_text(second.seconds)} a step ({more:+.0%}), {least}"
    reasons.append(Reason(code="next.best", text=text))
    if same and abs(more) < ERROR and found.objective != "memory":
        text = (
            f"{more:+.0%} is below the {ERROR:.0%} by which a prediction is off: a run of some steps of each would tell"
            f" (`parallel: {_parallel_text(second)}` for the other)"
        )
        reasons.append(Reason(code="next.too_close", text=text))
    return reasons


def _binding(chosen: Candidate) -> Reason:
    """The largest part of the step and of the memory."""
    assert chosen.time is not None
    part, seconds = max(chosen.time.parts.items(), key=lambda item: item[1])
    counted = {name: size for name, size in chosen.fit.memory.parts.items() if name != "calibration"}
    of_memory, size = max(counted.items(), key=lambda item: item[1])
    time = f"{part} takes {seconds / chosen.time.step_s:.0%} of a step"
    text = f"{time}; {of_memory.replace('_', ' ')}, {bytes_text(size)}, is the largest part of the peak"
    return Reason(code="bound.by", text=text)


def _parallel_text(one: Candidate) -> str:
    """The block that asks for it, in YAML's flow style."""
    ground, rung = one.fit.ground, one.fit.rung
    degrees = {"tensor": ground.tp, "pipeline": ground.pp, "sequence": ground.sp}
    words = [f"{name}: {degree}" for name, degree in degrees.items() if degree > 1]
    words += [f"zero: {rung.zero}", f"checkpointing: {rung.checkpointing}"]
    places = {"optimizer": rung.offload_optimizer, "parameters": rung.offload_parameters}
    away = [f"{name}: {place}" for name, place in places.items() if place != "none"]
    words += [f"offload: {{{', '.join(away)}}}"] if away else []
    return f"{{{', '.join(words)}}}"
