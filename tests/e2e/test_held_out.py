"""The shipped model, drawn by the program: prompts it was never trained on, judged by geometry.

HELD_OUT names another jobs file (examples/held-out-200.jsonl).
"""

import os
import subprocess
import sys
import unittest

import e2e

JOBS = os.environ.get("HELD_OUT", str(e2e.ROOT / "tests" / "golden" / "held-out-40.jsonl"))
MIN_PERCENT = os.environ.get("MIN_PERCENT", "95")


class HeldOut(e2e.Case):
    def test_prompts_are_drawn_right(self):
        drawn = subprocess.run([e2e.PROGRAM, "run", JOBS, "--models", str(e2e.ROOT / "models"),
                                "--out", str(self.dir / "out")], capture_output=True, text=True)
        self.assertEqual(drawn.returncode, 0, drawn.stderr)
        checked = subprocess.run([sys.executable, str(e2e.ROOT / "scripts" / "check-pictures"), JOBS,
                                  str(self.dir / "out"), "--min-percent", MIN_PERCENT],
                                 capture_output=True, text=True)
        print(checked.stdout)
        self.assertEqual(checked.returncode, 0, checked.stdout)


if __name__ == "__main__":
    unittest.main()
