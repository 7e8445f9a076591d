"""Model sections read from the config.json and generation_config.json of Hugging Face folders.

Every field of the transformers configurations is either honoured, harmless or refused.
"""
