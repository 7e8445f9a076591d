"""Metrics as the official scripts define them, in plain Python and numpy."""
