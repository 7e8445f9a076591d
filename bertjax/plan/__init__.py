"""Floor 6, beside evaluation: what a configuration comes to on devices that are not here, before anything runs.

`topologies` names the devices, `compile` and `evaluation` compile the real programs for them, `hlo`, `collectives` and
`work` read what the compiler made, `memory`, `estimate` and `rules` say what that means, `stages` puts it together,
`report` into words; `sweep` tries meshes, batches and remat policies. Compiling runs in a process of its own
(`python -m bertjax.plan`), because jax and the compilers read their environment when they start.
"""
