"""Multi-process runs: start-up, rendezvous, failure detection and agreement between processes."""
