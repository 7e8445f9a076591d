"""The Python interface: what `import bertjax` offers to programs and notebooks, on one code path with the command line.

Each name of `bertjax` is imported from its module on first use.
"""
