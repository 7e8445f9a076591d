"""Evaluation kinds: one module per kind, their records (registry), and the evaluators of a stage (build)."""
