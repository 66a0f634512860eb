"""CLIP's tokenizer files, made from OpenAI's published list of merges (models/clip)."""

import json
import os

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SOURCE = os.path.join(ROOT, "models", "clip", "merges.txt")
FOLDER = os.path.join(ROOT, "build", "model", "tokenizer")


def _bytes():
    """CLIP's printable stand-in for each byte, in vocabulary order."""
    kept = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in kept]
    return [chr(b) for b in kept] + [chr(256 + i) for i in range(len(others))]


def write(folder):
    """Writes vocab.json, merges.txt and the two small configuration files."""
    os.makedirs(folder, exist_ok=True)
    merges = open(SOURCE, encoding="utf-8").read().splitlines()
    entries = _bytes() + [b + "</w>" for b in _bytes()] + ["".join(m.split()) for m in merges]
    entries += ["<|startoftext|>", "<|endoftext|>"]
    assert len(entries) == 49408

    def put(name, text):
        with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
            file.write(text)

    vocabulary = {entry: i for i, entry in enumerate(entries)}
    assert len(vocabulary) == 49408
    put("vocab.json", json.dumps(vocabulary, ensure_ascii=False, separators=(",", ":")))
    put("merges.txt", "#version: 0.2\n" + "\n".join(merges) + "\n")
    special = {name: {"content": content, "lstrip": False, "normalized": True, "rstrip": False,
                      "single_word": False}
               for name, content in (("bos_token", "<|startoftext|>"),
                                     ("eos_token", "<|endoftext|>"),
                                     ("unk_token", "<|endoftext|>"))}
    special["pad_token"] = "<|endoftext|>"
    put("special_tokens_map.json", json.dumps(special, indent=2) + "\n")
    put("tokenizer_config.json", json.dumps({
        "add_prefix_space": False, "bos_token": "<|startoftext|>", "do_lower_case": True,
        "eos_token": "<|endoftext|>", "errors": "replace", "model_max_length": 77,
        "pad_token": "<|endoftext|>", "tokenizer_class": "CLIPTokenizer",
        "unk_token": "<|endoftext|>"}, indent=2) + "\n")


def load():
    from transformers import CLIPTokenizer
    write(FOLDER)
    return CLIPTokenizer.from_pretrained(FOLDER)


if __name__ == "__main__":
    words = load()
    print(words("a smiling yellow circle!").input_ids, words.pad_token_id, len(words))
