"""DO: facts, preflight, watch, resume. Policy is pure and apart."""
