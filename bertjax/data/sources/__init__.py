"""Sources: what can be read as documents, records or questions, one module per group of source kinds."""
