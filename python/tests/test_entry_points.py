"""What an installed package tells model servers."""

import importlib.metadata
import unittest


class EntryPoints(unittest.TestCase):
    def test_each_server_finds_a_plugin_that_runs_without_it(self):
        for group in ("vllm.general_plugins", "sglang.srt.plugins"):
            (found,) = (entry for entry in importlib.metadata.entry_points(group=group) if entry.dist.name == "weightd")
            self.assertEqual(found.name, "weightd")
            found.load()()
