"""DO: one file per kind of cluster. A typed, printable request first, effects second."""
