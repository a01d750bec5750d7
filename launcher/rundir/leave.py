"""What the control side and the ranks of a stage agree on, so that ranks save a checkpoint and leave when they are asked to."""

from __future__ import annotations

import signal

# Whatever starts ranks starts them with it blocked: it waits in the process until the rank looks, interrupts nothing and
# kills nobody, not even a Python that is still importing. Its default action would.
LEAVE = signal.SIGUSR1
SAVE_S = 600.0  # from the request to the end of the ranks: the step they are at, and the states of a large model to a slow disk
