"""``python -m jaxserve.launch_server``: the tutorials' name for ``jaxserve.launch``."""

import sys

from jaxserve.launch import main

if __name__ == "__main__":
    sys.exit(main())
