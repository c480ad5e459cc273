"""The training step (pure), the loop that maps it over devices, and what keeps a run."""
