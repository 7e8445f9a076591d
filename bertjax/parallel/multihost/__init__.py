"""Several processes: start-up, rendezvous, failure detection, and agreement between processes."""
