"""Predictions for texts of the user, one module per task: each class keeps its compiled programs between calls, takes
lists and returns lists in the same order. `bertjax.Model` and `bertjax predict` call the same classes."""
