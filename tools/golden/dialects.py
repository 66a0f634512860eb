"""What a1111 and comfyui tell the network of a prompt, by the formulas that these programs publish.

A job says by hand, in `told`, what its prompts mean: for each prompt a list of parts, each a weight
and stages, each its last step and pieces of text with weights; a piece that is None begins a chunk.
The parsers have tests of their own. From there on everything is computed here with transformers'
encoders: chunks, weights, and which text each call of the network is told.

a1111: modules/sd_hijack_clip.py, sd_emphasis.py ("Original"), prompt_parser.py and
sd_samplers_cfg_denoiser.py of stable-diffusion-webui 1.10. comfyui: comfy/sd1_clip.py and
sdxl_clip.py of ComfyUI 0.3.
"""

import torch
from safetensors.torch import load_file

import shared

BACKTRACK = 20  # tokens, to a comma
LARGE = 8  # tokens of a word


def chunk_of(pipe):
    """Tokens of a chunk without start and end: 75, fewer only of the golden models' short encoders."""
    encoders = [pipe.text_encoder, getattr(pipe, "text_encoder_2", None)]
    return min(encoder.config.max_position_embeddings for encoder in encoders if encoder) - 2


class Words:
    """Words that stand for vectors, of one encoder."""

    def __init__(self, job, encoder, second):
        self.vectors = {}
        for name in job.get("embeddings", []):
            tensors = load_file(shared.MODELS / "embeddings" / f"{name}.safetensors")
            key = ["clip_l", "clip_g"][second] if "clip_l" in tensors else next(iter(tensors))
            self.vectors[name] = tensors[key].float().reshape(-1, encoder.config.hidden_size)


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False, truncation=False)["input_ids"]


def a1111_chunks(pieces, tokenizer, words, size):
    """Lists of (id or vector, weight), at most `size` each."""
    comma = ids_of(tokenizer, ",")[0]
    names = sorted(((ids_of(tokenizer, name), name) for name in words.vectors), key=lambda pair: -len(pair[0]))
    chunks, chunk, last = [], [], None
    for piece in pieces:
        if piece is None:
            chunks.append(chunk)
            chunk, last = [], None
            continue
        ids = ids_of(tokenizer, piece[0])
        while ids:
            if ids[0] == comma:
                last = len(chunk)
            elif len(chunk) == size and last is not None and size - last <= BACKTRACK:
                chunks.append(chunk[: last + 1])
                chunk, last = chunk[last + 1 :], None
            if len(chunk) == size:
                chunks.append(chunk)
                chunk, last = [], None
            found = next((pair for pair in names if ids[: len(pair[0])] == pair[0]), None)
            group = list(words.vectors[found[1]]) if found else ids[:1]
            if found and len(chunk) + len(group) > size:
                chunks.append(chunk)
                chunk, last = [], None
            chunk += [(item, piece[1]) for item in group]
            ids = ids[len(found[0]) if found else 1 :]
    if chunk or not chunks:
        chunks.append(chunk)
    return chunks


def comfyui_chunks(pieces, tokenizer, words, size):
    chunks, chunk = [], []
    for text, weight in pieces:
        for word in text.replace("\n", " ").split():
            group = []
            if word.startswith("embedding:"):
                name = word.removeprefix("embedding:").rstrip(",")
                group = list(words.vectors[name])
                word = word.removeprefix("embedding:" + name)
            for part in [group, ids_of(tokenizer, word) if word else []]:
                while part:
                    room = size - len(chunk)
                    take = len(part) if len(part) <= room else room if len(part) >= LARGE else 0
                    chunk += [(item, weight) for item in part[:take]]
                    part = part[take:]
                    if part:
                        chunks.append(chunk)
                        chunk = []
    return [*chunks, chunk]


class Encoder:
    """One text encoder: chunks in, hidden states and a pooled vector out."""

    def __init__(self, pipe, number, skip):
        self.tokenizer = getattr(pipe, ("tokenizer", "tokenizer_2")[number])
        self.model = getattr(pipe, ("text_encoder", "text_encoder_2")[number])
        self.xl = hasattr(pipe, "text_encoder_2")
        self.layer = -(skip + (2 if self.xl else 1))
        self.length = chunk_of(pipe) + 2

    def tokens(self, chunk):
        t = self.tokenizer
        ids = [0 if torch.is_tensor(item) else item for item, _ in chunk]
        ids = [t.bos_token_id, *ids, t.eos_token_id]
        return ids + [t.pad_token_id] * (self.length - len(ids))

    def weights(self, chunk):
        weights = [1.0] + [weight for _, weight in chunk]
        return torch.tensor(weights + [1.0] * (self.length - len(weights)))[:, None]

    def __call__(self, chunk):
        vectors = {i + 1: item for i, (item, _) in enumerate(chunk) if torch.is_tensor(item)}

        def put(_module, _args, output):
            for i, vector in vectors.items():
                output[0, i] = vector
            return output

        text = getattr(self.model, "text_model", self.model)
        handle = text.embeddings.token_embedding.register_forward_hook(put)
        out = self.model(torch.tensor([self.tokens(chunk)]), output_hidden_states=True)
        handle.remove()
        hidden = out.hidden_states[self.layer]
        if not self.xl:
            hidden = text.final_layer_norm(hidden)
        return hidden[0], out.text_embeds[0] if self.xl and "text_embeds" in out else None


def a1111_encode(encoder, stages):
    """All stages of a part at once: hidden states [stages, tokens, width], pooled [stages, width]."""
    longest = max(len(chunks) for chunks in stages)
    stages = [chunks + [[]] * (longest - len(chunks)) for chunks in stages]
    columns, pooled = [], None
    for column in zip(*stages):
        encoded = [encoder(chunk) for chunk in column]
        z = torch.stack([hidden for hidden, _ in encoded])
        if pooled is None and encoded[0][1] is not None:
            pooled = torch.stack([vector for _, vector in encoded])
        mean = z.double().mean()
        z = z * torch.stack([encoder.weights(chunk) for chunk in column])
        columns.append(z * (mean / z.double().mean()).float())
    return torch.cat(columns, 1), pooled


def comfyui_encode(encoder, stages):
    (chunks,) = stages
    empty, _ = encoder([])
    rows, pooled = [], None
    for chunk in chunks:
        hidden, vector = encoder(chunk)
        pooled = vector if pooled is None else pooled
        weights = encoder.weights(chunk)
        rows.append(torch.where(weights == 1, hidden, empty + (hidden - empty) * weights))
    return torch.cat(rows)[None], None if pooled is None else pooled[None]


class Part:
    """A part of a prompt: of each stage its last step, its embedding and its pooled vector."""

    def __init__(self, job, pipe, weight, stages, skip):
        chunk, encode = {
            "a1111": (a1111_chunks, a1111_encode),
            "comfyui": (comfyui_chunks, comfyui_encode),
        }[job["dialect"]]
        self.weight = weight
        self.until = [until for until, _ in stages]
        embeds = []
        for number in range(2 if hasattr(pipe, "text_encoder_2") else 1):
            encoder = Encoder(pipe, number, skip)
            words = Words(job, encoder.model, number == 1)
            chunks = [chunk(pieces, encoder.tokenizer, words, chunk_of(pipe)) for _, pieces in stages]
            hidden, self.pooled = encode(encoder, chunks)
            embeds.append(hidden)
        shortest = min(hidden.shape[1] for hidden in embeds)
        self.embeds = torch.cat([hidden[:, :shortest] for hidden in embeds], -1)
        self.chunk = chunk_of(pipe) + 2
        self.empty = stages[0][1] == [["", 1]]

    def lengthen(self, tokens):
        last = self.embeds[:, -1:].repeat(1, tokens - self.embeds.shape[1], 1)
        self.embeds = torch.cat([self.embeds, last], 1)

    def stage(self, call):
        """a1111 counts calls from 0 and compares with <=."""
        return next((i for i, until in enumerate(self.until) if call <= until), 0)


class Absent:
    """SDXL's negative prompt where there is none."""

    def __init__(self, like):
        self.weight, self.until, self.chunk, self.empty = 1, [0], like.chunk, False
        self.embeds = torch.zeros_like(like.embeds[:1, : like.chunk])
        self.pooled = torch.zeros_like(like.pooled[:1])

    def stage(self, _call):
        return 0


class Told:
    """Stands between a pipeline and its network, which it tells what the job's dialect says."""

    def __init__(self, job, pipe):
        told = job["told"]
        self.parts = [Part(job, pipe, *part, job.get("clip_skip", 0)) for part in told["prompt"]]
        longest = max(part.embeds.shape[1] for part in self.parts)
        for part in self.parts:
            part.lengthen(longest)
        if "negative_prompt" in told:
            self.negative = Part(job, pipe, *told["negative_prompt"], 0)
        else:
            self.negative = Absent(self.parts[0])
        self.unet = pipe.unet
        self.call = 0

    def arguments(self):
        """Something for the pipeline to pass on."""
        first = self.parts[0]
        arguments = {"prompt_embeds": first.embeds[:1, : first.chunk]}
        if first.pooled is not None:
            arguments["pooled_prompt_embeds"] = first.pooled[:1]
        zeros = {f"negative_{name}": torch.zeros_like(value) for name, value in arguments.items()}
        return arguments | zeros

    def stages(self, dump):
        """The first texts, if they are of one chunk; of longer ones, which are large, the pictures tell."""
        for name in [name for name in dump if "prompt_embeds" in name or "pooled" in name]:
            dump.pop(name)
        for prefix, parts in (("", self.parts), ("negative_", [self.negative])):
            number = 0
            for part in parts:
                seen = []
                for i, embeds in enumerate(part.embeds):
                    if any(torch.equal(embeds, other) for other in seen):
                        continue
                    seen.append(embeds)
                    suffix = f".{number}" if number else ""
                    number += 1
                    if len(embeds) > part.chunk or number > 2 or part.empty:
                        continue
                    dump[f"{prefix}prompt_embeds{suffix}"] = embeds
                    if part.pooled is not None:
                        dump[f"{prefix}pooled{suffix}"] = part.pooled[i]

    def predict(self, forward, sample, timestep, part, told, row):
        stage = part.stage(self.call)
        added = told.get("added_cond_kwargs")
        if added:
            added = {"text_embeds": part.pooled[stage][None], "time_ids": added["time_ids"][row : row + 1]}
        more = {"added_cond_kwargs": added} if added else {}
        return forward(sample[:1], timestep, encoder_hidden_states=part.embeds[stage][None], return_dict=False, **more)[0]

    def __enter__(self):
        forward = self.unet.forward

        def wrapped(sample, timestep, **told):
            rows = len(sample)
            if rows == 1 and len(self.parts) == 1:
                out = self.predict(forward, sample, timestep, self.parts[0], told, 0)
            else:
                negative = self.predict(forward, sample, timestep, self.negative, told, 0)
                total = negative.clone()
                for part in self.parts:
                    output = self.predict(forward, sample, timestep, part, told, rows - 1)
                    total += part.weight * (output - negative)
                # Without guidance the pipeline takes what it gets: parts at a scale of 1.
                out = torch.cat([negative, total]) if rows == 2 else total
            self.call += 1
            return (out,)

        self.unet.forward = wrapped
        return self

    def __exit__(self, *_):
        del self.unet.forward
