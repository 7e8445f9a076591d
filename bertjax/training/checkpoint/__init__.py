"""Checkpoints: saving, verified restoring, retention, locating, adapter-only checkpoints and warm starts."""
