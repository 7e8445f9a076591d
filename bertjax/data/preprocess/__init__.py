"""From documents and records to training rows: one module per preprocess kind.

Also what the kinds share: masking, packing, labels, counters of truncated text and counter-based random numbers.
"""
