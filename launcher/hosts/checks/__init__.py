"""What hosts are asked before a run, and what is judged of their answers."""
