"""Published measurements -> what the planner would have said: rows of a CSV file, the stacks they ran on, the fit."""
