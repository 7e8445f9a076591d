"""The kind `text_pairs`: records with texts that belong together, and rows that hold each text alone."""
