"""DERIVE: (job, plan) to DeepSpeed configs with nothing left auto, and the lint of foreign ones. Pure."""
