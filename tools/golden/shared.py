"""What the golden makers share: places, the CLIP vocabulary, random weights."""

import json
import math
import pathlib

import torch

ROOT = pathlib.Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
MODELS = GOLDEN / "models"
JOBS = GOLDEN / "jobs"
MERGES = ROOT / "models" / "clip" / "merges.txt"

torch.set_num_threads(1)


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n")


def byte_letters():
    """The printable letter that stands for each byte in a byte-level vocabulary, in id order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        if byte not in letters:
            letters[byte] = chr(256 + len(letters) - len(printable))
    order = printable + [byte for byte in range(256) if byte not in printable]
    return [letters[byte] for byte in order]


def clip_merges(count=None):
    lines = MERGES.read_text(encoding="utf-8").splitlines()
    merges = [line for line in lines if line and not line.startswith("#version")]
    return merges[:count]


def clip_vocabulary(merges):
    letters = byte_letters()
    words = letters + [letter + "</w>" for letter in letters]
    words += ["".join(merge.split()) for merge in merges]
    words += ["<|startoftext|>", "<|endoftext|>"]
    return {word: index for index, word in enumerate(words)}


def randomize(module, seed, gains=None):
    """Random weights under which every tensor matters: no gain is 1, no bias 0, and attention is
    not uniform. `gains` maps a part of a name to a factor."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(module.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            is_gain = ("norm" in name or ".ln_" in name) and name.endswith("weight")
            value = 1 + 0.2 * noise if is_gain else 0.1 * noise
        elif "embedding" in name and "time_embedding" not in name:
            value = 0.7 * noise
        else:
            value = noise / math.sqrt(parameter[0].numel())
            if any(part in name for part in ("to_q", "to_k", "q_proj", "k_proj")):
                value *= 1.7
        for part, factor in (gains or {}).items():
            if part in name:
                value *= factor
        parameter.data.copy_(value)
    return module.eval()
