"""What a host is: its facts, the program that keeps the ranks there, and how the others are reached."""
