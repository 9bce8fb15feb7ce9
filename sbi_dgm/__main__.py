"""`python -m sbi_dgm` is `sbi-dgm`."""

import sys

from sbi_dgm.cli import main

if __name__ == "__main__":
    sys.exit(main())
