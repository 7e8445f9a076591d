"""Sources: everything that can be read as documents or records, one module per group of source kinds.

Files of text, JSON, TSV and Parquet, Hugging Face datasets, TensorFlow Datasets, SQuAD files and the documentation of
the Python standard library. Reading is streaming; errors name the file and line.
"""
