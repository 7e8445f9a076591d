"""Floor 2: weights of other tools. Hugging Face safetensors <-> our parameter paths, as tables; no torch, no pickle."""
