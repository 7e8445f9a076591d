"""Inference on batches of texts: span decoding and generation."""
