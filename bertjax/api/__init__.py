"""The Python interface: `bertjax.open` and `Model`, what a notebook or another program calls. It adds no logic of its
own to the layers below: the command line calls the same functions."""
