"""`bertjax plan`: compile for devices that are not attached, and report memory, communication and speed.

`topologies` names the devices, `compile` compiles, `hlo` reads the programs, `memory`, `estimate` and `sharding_notes`
interpret them, `stages` combines the results and `report` prints them; `sweep` tries meshes, batch sizes and remat
policies. Compilation runs in a subprocess, because jax and the compilers read their environment when they start.
"""
