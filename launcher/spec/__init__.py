"""ASK: what the user said. Frozen Pydantic models and their loading with places; nothing is decided here."""
