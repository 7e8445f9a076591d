"""`bertjax explore`: nearest words, word analogies, pictures of word vectors and attention maps of one model.

`neighbors`, `analogies` and `projection` are functions of arrays alone, for other tools too; `vocabulary` finds the
words among a tokenizer's pieces, `contextual` computes vectors of words in sentences, `words` holds the built-in words
and questions, `inputs` reads files of them, `command` puts the report together and `table` prints it.
"""
