"""`python -m cct` is the `cct` command."""

import sys

from .cli import main

sys.exit(main())
