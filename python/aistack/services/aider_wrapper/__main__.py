"""`python -m aistack.services.aider_wrapper`."""

import sys

from aistack.services.aider_wrapper.app import make
from aistack.services.aider_wrapper.settings import Settings
from aistack.services.common import main

if __name__ == "__main__":
    sys.exit(main(Settings, make))
