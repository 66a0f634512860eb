/* checkpoint_parts.h: what a checkpoint is made of; for checkpoint*.c only. */
#ifndef ATELIER_ENGINE_CHECKPOINT_PARTS_H
#define ATELIER_ENGINE_CHECKPOINT_PARTS_H

#include "engine/checkpoint.h"
#include "engine/names.h"

struct part {
    struct tensor_file *shards[CHECKPOINT_SHARDS_MAX];
    bool *used[CHECKPOINT_SHARDS_MAX]; /* by tensor index */
    int count;
};

/* A tensor that a file holds as a part of another, or transposed. */
struct derived {
    struct derived *next;
    const struct stored_tensor *from;
    int third;
    struct stored_tensor tensor;
    char data[]; /* of a transposed one */
};

/* A tensor that a synthetic checkpoint was asked for. */
struct asked {
    struct asked *next;
    enum component component;
    int64_t dims[4];
    int rank;
    char name[];
};

struct checkpoint {
    char *path;
    enum checkpoint_format format;
    struct part parts[COMPONENT_COUNT]; /* a single file is parts[0] alone */
    struct json_doc *configs[COMPONENT_COUNT];
    struct json_doc *scheduler, *index;
    bool has[COMPONENT_COUNT];
    enum family family;
    struct ldm_layout layout;
    struct derived *derived;
    char idle[CHECKPOINT_NAME_MAX_BYTES]; /* tensors that begin so are there and never used */
    uint16_t *pool;                       /* synthetic: POOL_ELEMENTS values in f16 */
    struct stored_tensor synthetic;
    struct asked *asked, **asked_end; /* in order */
};

/* Where a diffusers folder keeps a component; `tokenizer` NULL: it has none. */
struct component_place {
    const char *folder, *weights, *tokenizer;
};

const struct component_place *component_place(enum component component);

#endif
