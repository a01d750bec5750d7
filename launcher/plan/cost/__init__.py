"""How long a step takes and what it costs: physics of one device, links between devices, software, and their sum."""
