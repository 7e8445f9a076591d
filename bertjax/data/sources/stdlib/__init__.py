"""Text and questions from the Python standard library: data that every machine has, for demos and tests."""
