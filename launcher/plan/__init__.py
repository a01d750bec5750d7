"""DERIVE: what will be done and why. Pure functions over frozen dataclasses; facts come in as arguments."""
