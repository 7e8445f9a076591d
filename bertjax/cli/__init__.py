"""The command line: `main` parses and dispatches, the other modules define the commands, each beside its options.

A command imports what it needs when it runs, so that `--help` and configuration errors are fast.
"""
