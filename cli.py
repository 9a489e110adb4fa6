#!/usr/bin/env python3
"""Run meshwright from a clone: `python cli.py plan llama-3.1-8b dgx-h100:2`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from planner.cli.start import main

if __name__ == "__main__":
    sys.exit(main())
