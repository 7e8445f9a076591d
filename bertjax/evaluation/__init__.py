"""Floor 5: evaluation. Restore and score, answer and fill masks, and the report; on top of everything but the CLI."""
