"""Read model sections from config.json and generation_config.json of Hugging Face folders.

Every field of the transformers configurations is either supported, ignored as harmless or refused.
"""
