"""The model card of a run: what it tells, and where it knows it from."""
