"""The denoising objectives of T5: text is prepared as chunks of equal length, noise is drawn when a batch is loaded."""
