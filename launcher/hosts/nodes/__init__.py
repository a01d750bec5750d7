"""Nodes that a scheduler starts by itself: where each stands, and how they work together."""
