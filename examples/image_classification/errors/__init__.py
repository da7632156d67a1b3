"""How a run ends with one line: what was wrong, and what was likely meant."""
