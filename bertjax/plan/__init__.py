"""`bertjax plan`: compile for devices that are not attached, and report memory, communication and speed.

`topologies` names the devices, `compile` and `evaluation` compile the programs, `hlo` reads their HLO, `memory`,
`estimate` and `sharding_notes` interpret it, `stages` combines the results and `report` prints them; `sweep` tries
meshes, batch sizes and remat policies. Compilation runs in a subprocess (`python -m bertjax.plan`), because jax and the
compilers read their environment when they start.
"""
