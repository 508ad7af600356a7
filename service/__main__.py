"""`python -m service` is `freshet`."""

import sys

from service.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
