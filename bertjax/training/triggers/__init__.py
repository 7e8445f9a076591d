"""Decisions between two steps: when a stage evaluates, when a checkpoint is due by time, whether the stage ends."""
