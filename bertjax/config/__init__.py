"""From YAML files and command-line overrides to one checked, frozen `Config`; nothing here imports jax.

`schema` defines the options, `loading` reads and checks them, `huggingface` reads model folders of transformers, and
`reference` writes the page that describes all options.
"""
