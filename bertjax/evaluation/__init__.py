"""Evaluation: restore a checkpoint, run the evaluations of its stage, predict, and record what scores were made from."""
