"""Tokenizers: WordPiece and SentencePiece trained here, and tokenizers of Hugging Face folders."""
