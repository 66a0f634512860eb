"""tools/bench/plain.py's networks against diffusers' modules: the same parameters, the same outputs.

Needs torch and diffusers: run it with the python that scripts/python-env prints. Exit status 77: they
are not there.
"""

import pathlib
import sys
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools" / "bench"))
try:
    import diffusers  # noqa: F401
    import torch
except ImportError:
    print("SKIP no torch with diffusers")
    sys.exit(77)
import peers
import plain

SIDE = 128  # of the picture


def shapes(module):
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


class PlainNetworks(unittest.TestCase):
    def pairs(self, family, tiny):
        """diffusers' module, ours, and what they are called with."""
        config = peers.family(family, tiny)
        return ((peers.UnetCall(config["unet"]), plain.UnetCall(config["unet"]),
                 peers.unet_inputs(config["unet"], 2, SIDE)),
                (peers.VaeDecode(config["vae"]), plain.VaeDecode(config["vae"]), peers.vae_inputs(SIDE)))

    def test_full_size(self):
        for family in peers.FAMILIES:
            with torch.device("meta"):
                for theirs, ours, _ in self.pairs(family, False):
                    self.assertEqual(shapes(theirs), shapes(ours), family)

    def test_the_same_weights_compute_the_same(self):
        torch.manual_seed(0)
        for family in peers.FAMILIES:
            for theirs, ours, inputs in self.pairs(family, True):
                ours.load_state_dict(theirs.state_dict())
                with torch.inference_mode():
                    want, got = theirs(*inputs), ours(*inputs)
                self.assertLess(float((got - want).norm() / want.norm()), 1e-5, family)


if __name__ == "__main__":
    unittest.main()
