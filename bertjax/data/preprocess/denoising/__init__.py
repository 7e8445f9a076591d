"""The denoising objectives of T5: span corruption, i.i.d. denoising, deshuffling, prefix LM and causal LM.

Text is prepared as chunks of equal length; the noise is drawn when a batch is loaded.
"""
