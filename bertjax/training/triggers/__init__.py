"""Decisions between two steps: when a stage evaluates or saves, whether it ends, which function an episode runs."""
