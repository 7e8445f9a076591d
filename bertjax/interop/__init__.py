"""Weights of other tools: tables from Hugging Face safetensors to our parameter paths, without torch and pickle."""
