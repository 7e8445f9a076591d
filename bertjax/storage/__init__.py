"""Files: local and object-store paths, atomic writes, local copies of remote files.

The ground floor. Every path that a user gives passes through here; nothing here knows about configurations, data or
training.
"""
