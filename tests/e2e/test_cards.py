"""Runs on machines with several cards, with none, and with cards that are lost on the way. The cards
are emulated (a build with ATELIER_CUDA=EMULATED); the program asks of them what it asks of real ones.
"""

import json
import os
import unittest

import e2e

JOBS = [e2e.job(id=f"job-{i}", model="sd1-plain", prompt=f"a red cat {i}", images=2)
        for i in range(4)]
IDS = [job["id"] for job in JOBS]
SMALL_MIB = "4"  # sd1-small does not fit 3


class Cards(e2e.Case):
    def draw(self, out, *words, expect=0, **settings):
        self.out = self.dir / out
        environment = {**os.environ, **{f"ATELIER_EMULATED_{name}": str(value)
                                        for name, value in settings.items()}}
        return self.run_jobs("--json", *words, expect=expect, env=environment,
                             jobs=self.write_jobs(JOBS))

    def pictures(self, out):
        """The names of stored pictures, which hold the hashes of their bytes."""
        return sorted(path.name for path in (self.dir / out / "results").rglob("*.png"))

    def loads(self, result):
        return json.loads(result.stdout.strip().splitlines()[-1])["model_loads"]

    def test_every_card_draws_and_draws_the_same(self):
        self.assertEqual(self.loads(self.draw("one", "--device", "cuda")), 1)
        self.audit(IDS)
        # The second job goes to a card that is idle, though the first one has the model.
        self.assertGreater(self.loads(self.draw("three", "--device", "cuda", "--batch-max", 1,
                                                CARDS=3)), 1)
        self.audit(IDS)
        self.assertEqual(self.pictures("three"), self.pictures("one"))
        self.assertEqual(self.loads(self.draw("second", "--device", "cuda:1", CARDS=3)), 1)
        self.assertEqual(self.pictures("second"), self.pictures("one"))

    def test_cards_that_are_not_there(self):
        result = self.draw("none", "--device", "cuda:1", expect=6)
        self.assertIn("number 1 is asked for, and there are 1, counted from 0", result.stderr)
        result = self.draw("none", "--device", "cuda", expect=6, SM=0)
        self.assertIn("no CUDA device", result.stderr)
        result = self.draw("none", "--device", "cuda:x", expect=2)
        self.assertIn("cuda:N", result.stderr)

    def test_what_a_lost_card_leaves_is_taken_up(self):
        self.draw("whole", "--device", "cuda")
        lost = self.draw("lost", "--device", "cuda", "--batch-max", 1, expect=6,
                         LOST=600)
        self.assertIn("the CUDA device failed", lost.stderr)
        self.assertLess(len(self.pictures("lost")), len(self.pictures("whole")))
        self.draw("lost", "--device", "cuda")
        self.audit(IDS)
        self.assertEqual(self.pictures("lost"), self.pictures("whole"))


    def test_cards_that_are_too_small(self):
        """Two models that do not fit together follow each other, whether the program knows how much
        there is or finds out, as when another process has taken it; a picture that never fits is
        refused, and one of a size that does is drawn after it."""
        jobs = [e2e.job(id=f"job-{i}", model=("sd1-small", "sd2-small")[i % 2]) for i in range(4)]
        jobs.insert(2, e2e.job(id="large", model="sd1-small", width=1024, height=1024))
        self.write_jobs(jobs)
        for words in (), ("--memory", "1G"):
            self.out = self.dir / f"small{len(words)}"
            self.run_jobs("--device", "cuda", "--batch-max", 1, *words, expect=4,
                          env={**os.environ, "ATELIER_EMULATED_MEMORY": SMALL_MIB})
            self.audit({job["id"] for job in jobs} - {"large"})
            failed = self.records("failed.jsonl")
            self.assertEqual([each["id"] for each in failed], ["large"])


if __name__ == "__main__":
    unittest.main()
