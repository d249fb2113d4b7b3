"""Plant the faults: `python -m tests.faults`."""

import sys

from tests.faults.plant import main

sys.exit(main())
