"""Numbers of the reference implementations (`goldens/`), compared with ours by `bertjax verify` and the tests.

The checks need no data, accelerator or trained model.
"""
