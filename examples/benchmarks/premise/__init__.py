"""The paper's premise, measured: which p the loss asks for during a training."""
