"""The pydantic sections of the configuration: every option, its type and its default.

This package is the only place where defaults are defined. It does not read files and does not import jax.
"""
