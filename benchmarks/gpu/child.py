"""The process of one worker.

python -m gpu.child MODULE --settings JSON --records FILE
"""

import os
import sys

from gpu.worker import main

if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # No clean-up of threads or of a broken GPU context: what was found is on the disk.
    os._exit(code)
