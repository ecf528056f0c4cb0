"""Tests mirror the packages; whole-program tests are in tests/system."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
GOLDENS = ROOT / "tests" / "goldens"
SAMPLES = ROOT / "resources" / "samples"
