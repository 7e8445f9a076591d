"""File formats of SentencePiece unigram models: spiece.model and tokenizer.json."""
