"""Pages that are not about one run: answers of several ways, and the tasks of GLUE."""
