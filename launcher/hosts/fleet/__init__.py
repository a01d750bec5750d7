"""All hosts of one stage: who leads them, and what keeps the ranks on each."""
