"""`bertjax compare-mlm`: what more masked language modeling has changed in a model, measured on texts.

`texts` reads and samples sentences, `cloze` reads or chooses masked words, `likelihood` computes pseudo-perplexities,
`significance` tests the differences, `command` puts the report together and `table` prints it.
"""
