"""Bounds of the integers in configurations and options.

Steps and counts are int32 on a device. When the size of an array has no int64, XLA ends the process without an error
that Python could catch; the product of a few axes of at most MAX_SIZE has one.
"""

MAX_COUNT = 2**31 - 1
MAX_SIZE = 2**20
MAX_VOCABULARY = 2**24
MAX_LAYERS = 1000
MAX_ELEMENTS = 2**58  # of one array
MAX_RECORDS = 2**53
MAX_SEED = 2**63 - 1
