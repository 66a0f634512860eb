/*
 * adapter_keys.h: what the matrices and filters of a model are called in adapter files.
 *
 * The map is built from the model's own names to every published spelling of them; a file's key is
 * looked up in it and never taken apart, since flattened underscores cannot be. Built once, then
 * constant: any thread may look up.
 *
 *     adapter_keys_create(&keys, &err);
 *     adapter_keys_add(keys, COMPONENT_UNET, 7, "mid_block.attentions.0.proj_in", &layout, true,
 *                      &err);
 *     adapter_keys_seal(keys, &err);
 *     if (adapter_keys_find(keys, "lora_unet_mid_block_attentions_0_proj_in.alpha", &key)) ...
 *
 * Sources: diffusers' loaders and peft's state dicts (dotted names), kohya-ss sd-scripts
 * (`lora_unet_`, `lora_te…_`, and for SDXL the block names of LDM), LyCORIS (`lycoris_`, `hada_`,
 * `lokr_`, `diff`), ComfyUI (`diffusion_model.`, `text_encoders.clip_….`).
 */
#ifndef ATELIER_ENGINE_ADAPTER_KEYS_H
#define ATELIER_ENGINE_ADAPTER_KEYS_H

#include "engine/names.h"

#define ADAPTER_KEY_MAX_BYTES 512

/* What a tensor of an adapter is to the layer it belongs to. */
enum adapter_role {
    ROLE_DOWN, /* rank × in × kernel × kernel */
    ROLE_UP,   /* out × rank */
    ROLE_MID,  /* rank × rank × kernel × kernel, of a filter: down is 1×1 then */
    ROLE_ALPHA,
    ROLE_MAGNITUDE, /* DoRA's, one per output or per input */
    ROLE_DIFF,      /* like the layer's weight */
    ROLE_DIFF_BIAS, /* like its bias */
    ROLE_HADA_W1_A, /* LoHa's */
    ROLE_HADA_W1_B,
    ROLE_HADA_W2_A,
    ROLE_HADA_W2_B,
    ROLE_HADA_T1,
    ROLE_HADA_T2,
    ROLE_LOKR_W1, /* LoKr's */
    ROLE_LOKR_W1_A,
    ROLE_LOKR_W1_B,
    ROLE_LOKR_W2,
    ROLE_LOKR_W2_A,
    ROLE_LOKR_W2_B,
    ROLE_LOKR_T2,
    ADAPTER_ROLE_COUNT
};

struct adapter_keys;

struct adapter_key {
    enum component component;
    int number; /* as given to adapter_keys_add */
    enum adapter_role role;
};

int adapter_keys_create(struct adapter_keys **keys, struct err *err) must_check;
void adapter_keys_free(struct adapter_keys *keys);

/* Enters all spellings of `name`, diffusers' without ".weight". `layout` numbers LDM's blocks of a
 * UNet. `alone`: the model has no other text encoder. Fails with ERR_MEMORY (ERR_RETRY). */
int adapter_keys_add(struct adapter_keys *keys, enum component component, int number,
                     const char *name, const struct ldm_layout *layout, bool alone,
                     struct err *err) must_check;

/* No more is added; from now on keys can be found. Fails with ERR_MEMORY (ERR_RETRY). */
int adapter_keys_seal(struct adapter_keys *keys, struct err *err) must_check;

/* False for a key that belongs to nothing, or to two things at once. */
bool adapter_keys_find(const struct adapter_keys *keys, const char *key, struct adapter_key *found);

#endif
