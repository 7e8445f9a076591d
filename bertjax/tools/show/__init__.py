"""`bertjax show` and `bertjax tokenize`: rows of the training data and texts, as a model sees them.

`rows` decodes the arrays of a batch into pieces with their roles, without knowing which kind of preprocessing made
them; `text` prints them and `report.pages.rows` draws them.
"""
