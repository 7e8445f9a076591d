"""`bertjax init`: looks at the user's data and writes a configuration that trains on them.

`source` finds the kind of the files, `columns` the texts and labels, `survey` counts them, `heldout` splits a part off,
`recipe` chooses sizes, and `write` puts all of it into commented YAML.
"""
