"""The run folder's contract, used by both sides: paths, events, stage orders, artifacts. Knows neither JobSpec nor Plan."""
