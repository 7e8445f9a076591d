"""`python -m bertjax`."""

import sys

from bertjax.cli.main import main

sys.exit(main())
