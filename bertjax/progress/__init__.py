"""What a command says while it works: one live display on a terminal, rate-limited lines elsewhere, and a log file.

Everything goes through the process's reporter (`reporter.current`); no other module decides when to print progress.
"""
