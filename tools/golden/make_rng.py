"""tests/golden/rng.jsonl: what torch.randn returns, a line per stream.

Each line: {"seed", "calls": [{"n", "first", "last", "sum", "squares"}]}, the calls made one after
another on one generator; `first` holds the call's first values, `last` its last ones. Lines with "rng":
"philox" are torch.randn as on a GPU, computed here from Salmon et al., "Parallel Random Numbers: As
Easy as 1, 2, 3", 2011, figures 4 and 5, with the published keys' and counters' answers as a check, and
put together as modules/rng_philox.py of AUTOMATIC1111/stable-diffusion-webui documents it.
"""

import json
import math

import torch

import shared

SEEDS = [0, 1, 42, 2**31, 2**32 - 1, 2**32, 4294967297, 2**63 - 1]
SIZES = [[1], [15, 1, 3], [16], [17, 5, 31], [3, 256, 2], [4 * 8 * 8], [4 * 15 * 9, 4 * 15 * 9], [7, 7, 7],
         [4 * 64 * 64, 16]]
KEPT = 20


PHILOX_SEEDS = [0, 1, 42, 4294967297, 2**63 - 1]
PHILOX_SIZES = [[12], [3, 1, 5, 16], [4 * 8 * 8, 4 * 8 * 8, 4 * 8 * 8], [4 * 15 * 9]]
# Random123's known answers for ten rounds: counter, key, result.
ANSWERS = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([2**32 - 1] * 4, [2**32 - 1] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    ([0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], [0xA4093822, 0x299F31D0],
     [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]),
]


def philox(counter, key):
    left, right = (counter[0], counter[1]), (counter[2], counter[3])
    for _round in range(10):
        high_left, low_left = divmod(left[0] * 0xD2511F53, 2**32)
        high_right, low_right = divmod(right[0] * 0xCD9E8D57, 2**32)
        left, right = (high_right ^ left[1] ^ key[0], low_right), (high_left ^ right[1] ^ key[1], low_left)
        key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
    return [*left, *right]


def philox_normal(seed, call, n):
    values = []
    for i in range(n):
        a, b, _, _ = philox([call, 0, i, 0], [seed % 2**32, seed >> 32])
        values.append(math.sqrt(-2 * math.log((a + 0.5) / 2**32)) * math.sin((b + 0.5) / 2**32 * 2 * math.pi))
    return torch.tensor(values, dtype=torch.float64).float()


def summary(values):
    wide = values.double()
    return {"n": len(values), "first": values[:KEPT].tolist(), "last": values[-KEPT:].tolist(),
            "sum": wide.sum().item(), "squares": (wide * wide).sum().item()}


def main():
    for counter, key, answer in ANSWERS:
        assert philox(counter, key) == answer
    with open(shared.GOLDEN / "rng.jsonl", "w") as lines:
        for seed in SEEDS:
            for sizes in SIZES:
                generator = torch.Generator().manual_seed(seed)
                calls = [summary(torch.randn(n, generator=generator)) for n in sizes]
                lines.write(json.dumps({"seed": seed, "calls": calls}) + "\n")
        for seed in PHILOX_SEEDS:
            for sizes in PHILOX_SIZES:
                calls = [summary(philox_normal(seed, call, n)) for call, n in enumerate(sizes)]
                lines.write(json.dumps({"rng": "philox", "seed": seed, "calls": calls}) + "\n")


if __name__ == "__main__":
    main()
