"""The study: tasks x optimizers x learning rates x seeds, from a small file; see ../run_study.py."""
