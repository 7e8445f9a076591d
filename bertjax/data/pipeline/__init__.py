"""The input pipeline: prepare a task once, then load deterministic, mixed batches by number."""
