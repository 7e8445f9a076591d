"""One stage of a run: its plan, its beginning, its steps and its evaluations."""
