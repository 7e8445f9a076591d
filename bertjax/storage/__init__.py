"""Files: local and object-store paths, atomic writes, local copies of remote files.

The lowest layer: every path from a user passes through it, and it knows nothing of configurations, data or training.
"""
