"""The commands beside training: inspect, evaluate, convert, prepare, compare and diagnose."""
