"""Checkpoints: saving, verified restoring, retention, locating, adapter-only checkpoints and warm starts.

`manager` is the only module that imports Orbax.
"""
