"""The images: where they come from, and how they become the input of a model."""
