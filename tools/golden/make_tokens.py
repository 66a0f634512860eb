"""tests/golden/tokens.jsonl: texts and the ids that transformers' CLIPTokenizer gives them.

Each line: {"tokenizer", "text", "ids"}, the ids with start and end, uncut; some lines have
"padded" too, cut and padded to 77. The tokenizers: "clip" and "clip-pad!" have the full vocabulary
and the pad tokens of SD1 and SD2; the others are the folders of the golden models and of
tests/golden/tokenizers.
"""

import json
import random
import shutil

from transformers import CLIPTokenizer

import make_models
import shared

PROMPTS = """
a photo of an astronaut riding a horse on mars
portrait of a woman, oil on canvas, by rembrandt, trending on artstation, 8k, highly detailed
A RED Car, parked next to a Blue house!!!
it's a dog's life, isn't it? they're, we've, I'm, you'll, he'd, IT'S, DON'T, o'clock, rock 'n' roll
''s 's''t !'s x!!'s 'S 'RE ''''re 'sword 'tis 'velvet 'llama 'dear 'mine
(masterpiece:1.2), ((best quality)), [ugly], {a|b|c}, <lora:name:0.8>, \\(escaped\\)
1girl, 2boys, 3 cats & 4 dogs; 100% real, $9.99, no. 42, 1/2, 3.14159, 1e-5, 0x7f, 16:9
&lt;b&gt;bold&lt;/b&gt; &amp; &quot;quoted&quot; &#39; &nbsp; &eacute;
<b>bold</b> <br/> https://example.org/path?x=1&y=2#frag user@example.org
C++ vs C# vs F#, a_b-c.d/e\\f, x^2 + y^2 = z^2, a<b>c, ~/home, `code`, @user #tag
Ünïcödé ñandú œuvre Ærø ßtraße ŁÓDŹ ĲSSEL ǅungla ﬁne
ΟΔΥΣΣΕΥΣ Σίσυφος ς σ Σ ὈΔΥΣΣΕΎΣ ᾳ ᾼ Ά
İstanbul ISPARTA ıssız Iğdır i̇ I
Привет, мир! Съешь же ещё этих мягких французских булок ЁЖ
日本語のプロンプト、美しい風景 桜 東京タワー カタカナ ひらがな
中文提示词：一只可爱的猫，坐在沙发上。高清，细节丰富
한국어 프롬프트 아름다운 풍경 각 가나다 ᄒᆞᆫ글
شخص يركب حصانًا على المريخ ١٢٣
एक सुंदर सूर्यास्त क्षि १२३
ภาพถ่ายแมวน่ารัก ๑๒๓
שלום עולם שָׁלוֹם
😀 😃👍🏽 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 ❤️ ☺ ☺️ 1️⃣ ©️ ™ 🤖art
é é ñ ñ Å Å Å ạ̈ ạ̈ q̣̇ q̣̇ ộ ộ
½ ¼ ² ³ ¹ ⅷ Ⅷ ① ⑳ ㊿ ௧ ൧ 〇 一 𝟘 𝟙 𝓐 𝔅 Ａ１！
zero​width joiner‍ here⁠ word﻿ soft­hyphen
tab\tnewline\ncarriage\rvertical\x0bform\x0cfeed nel\x85 nbsp\xa0 thin  ideographic　 line  para  end
control \x01 \x02 \x1f \x7f \x80 \x9f end
<|startoftext|> <|endoftext|> a<|endoftext|>b <|ENDOFTEXT|> <|StartOfText|>!! <|endoftext|
!<|startoftext|>!!<|startoftext|>'s <|endoftext|><|endoftext|> |> <| <|end of text|> <||>
! !! !!! !!!! !a! a!b!c ¡hola! ! !　!
supercalifragilisticexpialidocious antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis
aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa bbbbbbbbbbbbbbbbbbbbbb abababababababababababab
............ ------ ====== ****** ?????? ,,,,,, ;;;; :::: '''''' \"\"\"\" ((((( )))))
naïve café résumé jalapeño piñata façade coöperate Zoë Brontë
photo 4k 8K UHD HDR f/1.8 50mm ISO100 1080p 3D CGI vfx RAW .jpg IMG_1234.CR2
steampunk cyberpunk vaporwave lo-fi ukiyo-e art-deco art nouveau sci-fi film-noir
"""

LONG = [
    "a very detailed picture of " + "many little houses and trees, " * 12,
    "word " * 75,
    "word " * 76,
    "word " * 74,
    "!" * 160,
    "a" * 300,
    "é" * 120,
    "😀" * 40,
    "<|endoftext|>" * 80,
    "中" * 90,
]

ODD = ["", " ", "   ", "\n", "a", "'", "!", "é", "İ", "\u0301", "\u0345", "a\u0345\u0301", "<", "<|", "<|endoftext|>",
       "\u1e9b\u0323", "\u0958", "\u2126", "\u212b", "\ufb1d", "\U0002f800", "\uac00\u11a8", "\u1100\u1161\u11a8",
       "\u1100\u1161\u11a7", "\u0344", "\u0f73", "\u09c7\u09be", "\U0001d15e", "\U00011099\U000110ba", "\u3000", "\u00a0",
       "\u180e", "\u200b", "\u2028", "\ufeff", "\ufffd", "\uffff", "\U0010ffff", "\ue000", "\u0378", "\u07fd", "\u1c89",
       "\ua7cb", "\U0001e900", "\u10a0", "\u13a0", "\uab70", "\u1e9e", "\u2c2f", "\u01c5", "\u2160", "\u24b6", "\u2cf2",
       "\u16ff0", "\U00016ff0", "\u1df6", "\U0001e2ec"]


def random_texts(count):
    generator = random.Random(20240501)
    blocks = [range(0x20, 0x7F)] * 6 + [
        range(0xA0, 0x250), range(0x300, 0x370), range(0x370, 0x530), range(0x5D0, 0x6FF), range(0x900, 0xE5C),
        range(0x1100, 0x1200), range(0x1E00, 0x2000), range(0x2000, 0x2070), range(0x2150, 0x2190), range(0x2600, 0x27C0),
        range(0x3040, 0x3100), range(0x4E00, 0x4F00), range(0xAC00, 0xAD00), range(0xFB00, 0xFB50), range(0xFF00, 0xFFF0),
        range(0x1F300, 0x1F650), range(1, 0x20), range(0x10400, 0x10450),
    ]
    bits = ["'s", "'ll", "<|endoftext|>", "!!", " ", "  ", "the", "Cat", "123", "é", "e\u0301"]
    for _ in range(count):
        block = generator.choice(blocks)
        parts = []
        for _ in range(generator.randint(1, 24)):
            if generator.random() < 0.2:
                parts.append(generator.choice(bits))
            else:
                source = block if generator.random() < 0.7 else generator.choice(blocks)
                parts.append(chr(generator.choice(source)))
        yield "".join(parts)


def texts():
    yield from (line.encode().decode("unicode_escape").encode("latin-1").decode() if "\\x" in line else line
                for line in PROMPTS.strip("\n").split("\n"))
    yield from LONG
    yield from ODD
    merges = shared.clip_merges()
    yield " ".join("".join(merge.split()).removesuffix("</w>") for merge in merges[30000:30060] if merge.isascii())
    yield from random_texts(320)


def full(pad):
    merges = shared.clip_merges()
    return CLIPTokenizer(
        vocab=shared.clip_vocabulary(merges),
        merges=[tuple(merge.split()) for merge in merges],
        pad_token=pad,
        model_max_length=77,
    )


def make_folders(root):
    """Tokenizer folders with less, or other, than the golden models have."""
    shutil.rmtree(root, ignore_errors=True)
    make_models.save_tokenizer(root / "bare", 60, "!", files=("vocab", "merges"))
    make_models.save_tokenizer(root / "config-only", 60, "!", files=("vocab", "merges", "config"))
    make_models.save_tokenizer(root / "map-only", 60, "!", files=("vocab", "merges", "special"))
    make_models.save_tokenizer(root / "whole", 60, "!")
    CLIPTokenizer.from_pretrained(root / "whole").save_pretrained(root / "whole")
    for name in ("vocab.json", "merges.txt", "special_tokens_map.json"):
        (root / "whole" / name).unlink()
    make_models.save_tokenizer(root / "decoder", 60, "<|endoftext|>")
    path = root / "decoder" / "tokenizer_config.json"
    config = json.loads(path.read_text())
    token = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False, "special": True}
    config["added_tokens_decoder"] = {"572": token | {"content": "<|startoftext|>"}, "573": token | {"content": "<|endoftext|>"},
                                      "574": token | {"content": "Extra", "normalized": False}}
    for key in ("bos_token", "eos_token", "unk_token"):
        config[key] = config[key]["content"]
    shared.write_json(path, config)
    # A vocabulary without some letters: bytes that are unknown.
    make_models.save_tokenizer(root / "gaps", 60, "<|endoftext|>")
    path = root / "gaps" / "vocab.json"
    words = json.loads(path.read_text())
    for word in ("Z", "z", "z</w>", "Q</w>", "q</w>"):
        del words[word]
    path.write_text(json.dumps(words, ensure_ascii=False))


def main():
    folders = shared.GOLDEN / "tokenizers"
    make_folders(folders)
    kinds = {"clip": full("<|endoftext|>"), "clip-pad!": full("!")}
    for name in ("sd1-small", "sd2-small"):
        kinds[f"models/{name}/tokenizer"] = CLIPTokenizer.from_pretrained(shared.MODELS / name / "tokenizer")
    for folder in sorted(folders.iterdir()):
        kinds[f"tokenizers/{folder.name}"] = CLIPTokenizer.from_pretrained(folder, model_max_length=77)
    with open(shared.GOLDEN / "tokens.jsonl", "w") as lines:
        for name, tokenizer in kinds.items():
            for number, text in enumerate(texts()):
                if name != "clip" and number >= 90 and number % 10:
                    continue
                row = {"tokenizer": name, "text": text, "ids": tokenizer(text).input_ids}
                if len(row["ids"]) > 60 or number % 8 == 0:
                    row["padded"] = tokenizer(text, padding="max_length", max_length=77, truncation=True).input_ids
                lines.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
