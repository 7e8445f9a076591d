"""Floor 0: devices. The mesh, the one table that maps logical axes to mesh axes, and start-up of several processes."""
