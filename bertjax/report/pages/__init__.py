"""Pages that are not about one run: answers of several ways, two sets of predictions, and the tasks of GLUE."""
