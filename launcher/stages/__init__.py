"""Node side: one file per stage, one story each, started with python -m launcher.stages."""
