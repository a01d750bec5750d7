"""What cannot work or has no effect, as one table of small rules: read by validate, plan and docs alike."""
