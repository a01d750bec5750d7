"""zerolaunch: one job file trains a language model through all its stages on DeepSpeed."""

__version__ = "0.1.0"
