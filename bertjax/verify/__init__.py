"""The reference semantics as numbers: `goldens/` holds what the reference programs gave, the modules what we give.

`bertjax verify` and the tests run the same table. It needs no data, no accelerator and nothing that was trained.
"""
