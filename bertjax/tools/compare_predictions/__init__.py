"""`bertjax compare-predictions`: two sets of predictions for the same questions or texts, side by side.

`read` finds and reads the predictions, `items` pairs and scores them, `groups` sorts questions into kinds, and
`command` counts, tests and writes what was found.
"""
