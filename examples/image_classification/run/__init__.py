"""A run: its flags, where it writes, how it is resumed and pushed, and how it is measured."""
