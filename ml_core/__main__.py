"""Run the command line: python -m ml_core train|predict|evaluate|export-nnunet."""

from __future__ import annotations

import sys

from ml_core.front.command_line import main

if __name__ == "__main__":
    sys.exit(main())
