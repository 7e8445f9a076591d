"""Numbers of the reference implementations (`goldens/`), compared with ours without data and trained models."""
