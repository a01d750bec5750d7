"""What one host is, on the host: its devices, memory, cards, packages and processes."""
