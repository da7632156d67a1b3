"""The model card of a run: its text, its curves, and where they come from."""
