"""ELMo: a bidirectional LSTM language model, its recurrence and its FLOPs."""
