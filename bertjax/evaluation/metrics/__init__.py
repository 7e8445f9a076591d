"""Scores, as the official scripts define them. Plain Python and numpy."""
