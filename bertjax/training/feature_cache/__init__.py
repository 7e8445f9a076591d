"""Features of a frozen encoder: each training row is encoded once and its hidden states are kept in host memory."""
