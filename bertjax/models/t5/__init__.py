"""T5: encoder, decoder and decoder-only models, cached decoding and FLOPs."""
