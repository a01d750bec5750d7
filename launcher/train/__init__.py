"""Node side: what the stages share. Imports torch; knows no plan, no backend."""
