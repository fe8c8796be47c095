"""`python -m collector` is the same as the `coreward` command."""

import sys

from collector.cli import main

sys.exit(main())
