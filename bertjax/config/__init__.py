"""What a run is: the schema and the way from YAML files and the command line to one checked, frozen `Config`.

`schema.py` holds every option and every default. `load.py` reads a file, the files it extends and the overrides, and
reports everything wrong at once. `strict_yaml.py` is the reader, `merge.py` lays one configuration over another,
`places.py` answers questions about the schema, `problems.py` words the errors. Nothing here imports jax.
"""
