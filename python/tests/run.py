"""Runs test modules: run.py MODULE... It skips nothing: who runs it has asked what is there."""

import sys
import unittest

result = unittest.TextTestRunner(verbosity=2).run(unittest.defaultTestLoader.loadTestsFromNames(sys.argv[1:]))
sys.exit(0 if result.wasSuccessful() and result.testsRun and not result.skipped else 1)
