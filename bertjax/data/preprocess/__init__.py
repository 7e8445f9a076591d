"""From documents and records to training rows: one module per preprocess kind, and what the kinds share."""
