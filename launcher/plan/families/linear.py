"""Linear: one weight matrix of a block. DERIVE, a noun only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """One weight matrix of a block. LoRA and nf4 work on these and on nothing else."""

    name: str  # last part of the module's name
    inputs: int
    outputs: int
    bias: bool
    row: bool  # tensor parallel ranks split its inputs and add up; the others split their outputs

    @property
    def num_weights(self) -> int:
        return self.inputs * self.outputs
