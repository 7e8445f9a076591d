"""Evaluation: restore a checkpoint, run the evaluations of its stage, predict, and record the provenance of scores."""
