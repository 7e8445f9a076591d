"""Hidden states of a frozen encoder or its frozen layers: each training row is encoded once, kept in host memory."""
