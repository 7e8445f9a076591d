"""The evaluations of a stage, one module per evaluation kind, and the table that builds them."""
