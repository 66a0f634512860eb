"""Writes engine/unicode_tables.c: what the tokenizer needs to know about characters.

The tables are probed from the `tokenizers` library, not read from a Unicode release, because the
library is what prompts were tokenized with when the models were trained and tested: its classes of
characters, its lower case, its NFC. Run with the environment of scripts/python-env:

    python tools/unicode/make_tables.py
"""

import pathlib
import unicodedata

from tokenizers import Regex, normalizers, pre_tokenizers

OUT = pathlib.Path(__file__).resolve().parents[2] / "engine" / "unicode_tables.c"
CODES = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
HANGUL = range(0xAC00, 0xAC00 + 11172)

split = pre_tokenizers.Split(Regex(r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"), behavior="removed", invert=True)
nfc = normalizers.NFC().normalize_str
nfd = normalizers.NFD().normalize_str
lower = normalizers.Lowercase().normalize_str


def pieces(text):
    return len(split.pre_tokenize_str(text))


def class_of(char):
    if pieces(char) == 0:
        return "SPACE"
    if pieces("a" + char) == 1:
        return "LETTER"
    return "NUMBER" if pieces(char + char) == 2 else "OTHER"


def ranges(values, absent):
    """[(first, last, value)] of runs of one value, those of `absent` left out."""
    runs = []
    for code, value in sorted(values.items()):
        if value == absent:
            continue
        if runs and runs[-1][2] == value and runs[-1][1] == code - 1:
            runs[-1][1] = code
        else:
            runs.append([code, code, value])
    return runs


def combining_classes(plain):
    """Canonical combining classes, found by how NFD orders a character among known ones."""

    def swaps(first, second):
        return nfd("a" + first + second) == "a" + second + first

    low, high = "\u0334", "\u0345"  # classes 1 and 240, the first and the last

    def is_mark(char):
        return swaps(high, char) or swaps(char, low)

    known = {}
    for code in CODES:
        value = unicodedata.combining(chr(code))
        if value and value not in known and is_mark(chr(code)):
            known[value] = chr(code)
    classes = {}
    for code in plain:
        char = chr(code)
        if not is_mark(char):
            continue
        same = [value for value, mark in known.items()
                if char == mark or (not swaps(mark, char) and not swaps(char, mark))]
        assert len(same) == 1, (hex(code), same)
        classes[code] = same[0]
    return classes


def compositions(decomposed):
    """(first, second, composed) of every pair that NFC joins, Hangul left out."""
    pairs = []
    for code, parts in decomposed.items():
        char = chr(code)
        if nfc(char) != char or len(parts) < 2:
            continue
        head = nfc("".join(parts[:-1]))
        assert len(head) == 1 and nfc(head + parts[-1]) == char, hex(code)
        pairs.append((ord(head), ord(parts[-1]), code))
    return sorted(pairs)


def rows(items, per_line):
    lines = [", ".join(items[at : at + per_line]) for at in range(0, len(items), per_line)]
    return "".join(f"    {line},\n" for line in lines)


def array(kind, name, items, per_line):
    return (f"const struct {kind} unicode_{name}[] = {{\n{rows(items, per_line)}}};\n"
            f"const size_t unicode_{name}_count = sizeof(unicode_{name}) / sizeof(unicode_{name}[0]);\n\n")


def main():
    classes = ranges({code: class_of(chr(code)) for code in CODES}, "OTHER")
    lowered = [(code, lower(chr(code))) for code in CODES if lower(chr(code)) != chr(code)]
    assert [code for code, text in lowered if len(text) > 1] == [0x130] and lower("\u0130") == "i\u0307"
    changed = {code: nfd(chr(code)) for code in CODES if nfd(chr(code)) != chr(code)}
    decomposed = {code: text for code, text in changed.items() if code not in HANGUL}
    marks = ranges(combining_classes([code for code in CODES if code not in changed]), 0)
    joined = compositions(decomposed)

    text = "/* Written by tools/unicode/make_tables.py; not to be edited. */\n"
    text += '#include "engine/unicode_tables.h"\n\n// clang-format off\n\n'
    text += array("unicode_range", "classes",
                  [f"{{{a:#x}, {b:#x}, UNICODE_{v}}}" for a, b, v in classes], 3)
    text += array("unicode_range", "marks", [f"{{{a:#x}, {b:#x}, {v}}}" for a, b, v in marks], 4)
    text += array("unicode_pair", "lower",
                  [f"{{{code:#x}, {ord(text[0]):#x}}}" for code, text in lowered if code != 0x130], 5)
    text += array("unicode_split", "splits",
                  ["{%#x, {%s}}" % (code, ", ".join(f"{ord(part):#x}" for part in parts))
                   for code, parts in decomposed.items()], 2)
    text += array("unicode_join", "joins", [f"{{{a:#x}, {b:#x}, {c:#x}}}" for a, b, c in joined], 4)
    OUT.write_text(text.rstrip() + "\n")


if __name__ == "__main__":
    main()
