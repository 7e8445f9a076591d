"""A folder of documents: its files, their passages, and the passages that BM25 ranks first for a question.

Nothing here knows a model: the predictor of `predictors/documents.py` reads the passages that are found.
"""
