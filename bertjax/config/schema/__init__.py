"""The pydantic sections of the configuration: every option with its type, default and description. Free of jax.

docs/configuration_reference.md is generated from them.
"""
