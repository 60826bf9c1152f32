"""`python -m aistack` is the command line."""

import sys

from aistack.cli import main

sys.exit(main())
