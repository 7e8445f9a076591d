"""Devices: the mesh, the rules that map logical axes to mesh axes, and multi-process runs."""
