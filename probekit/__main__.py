"""`python -m probekit` is the command `probekit`."""

import sys

from probekit.cli.main import main

sys.exit(main())
