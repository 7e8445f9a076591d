"""The command line: parse arguments, check the configuration, run one command.

Nothing here imports jax or another heavy library before a command needs it, so `--help` and configuration errors are
fast. Each command is defined beside its options.
"""
