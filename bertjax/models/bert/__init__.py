"""BERT and DistilBERT: the encoder, its heads and its FLOPs."""
