"""`python -m rl_think_ext.cli` is `rl-think`."""

import sys

from rl_think_ext.cli import main

sys.exit(main())
