"""From a run's record to a self-contained page and a model card."""
