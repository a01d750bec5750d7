"""Events and metrics to a summary, and the summary to text."""
