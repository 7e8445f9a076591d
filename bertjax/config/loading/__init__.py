"""Read, merge, check and write configurations: YAML with line numbers, `extends`, overrides and error messages."""
