"""Rows for token classification: sentences of words and labels, their pieces, the windows over long sentences."""
