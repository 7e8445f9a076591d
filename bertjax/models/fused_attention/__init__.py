"""Attention that keeps scores and probabilities on the chip, with dropout and T5's relative position bias."""
