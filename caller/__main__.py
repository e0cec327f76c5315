"""`python -m caller`: see caller.cli."""

import sys

from caller.cli import main

sys.exit(main())
