/*
 * job.h: one picture request: the contract that producers write to, version 1.
 *
 * The same JSON object is a line of a jobs file, the value of a Kafka record and the body of an
 * HTTP request. One table (job_table.c) drives the reading, the defaults, the range checks, the
 * canonical writing and the published JSON Schema.
 *
 * A job owns the parsed text it came from; its strings point into that. Fields that only the model
 * can fill in (size, steps, …) hold their "not given" value, as commented, until job_fill_*.
 * Nothing here does I/O; a job is used by one thread at a time.
 *
 *     struct job job;
 *     struct job_problems problems;
 *     if (job_parse(&job, line, len, &problems, &err) != 0) ... problems.items ...
 *     job_identify(&job, "jobs.jsonl", line_number, &err);
 *     job_release(&job);
 */
#ifndef ATELIER_SCHEMA_JOB_H
#define ATELIER_SCHEMA_JOB_H

#include "common/buf.h"
#include "common/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define JOB_MAX_BYTES (256u << 10) /* of one request */
#define JOB_PROMPT_MAX_BYTES (16u << 10)
#define JOB_NAME_MAX_BYTES 128 /* ids, batches, tenants */
#define JOB_LORAS_MAX 16
#define JOB_EMBEDDINGS_MAX 16
#define JOB_CONTROLNETS_MAX 8
#define JOB_LABELS_MAX 32
#define JOB_IMAGES_MAX 64
#define JOB_SIZE_MAX 2048 /* pixels, each way */
#define JOB_TIME_NONE INT64_MIN
#define JOB_ENCODED_MAX_BYTES (2u << 20)

struct json;
struct json_doc;

struct job_lora {
    const char *name;
    double scale; /* -4 … 4 */
};

struct job_controlnet {
    const char *name;
    const char *image; /* URI of the hint */
    double scale;
    double start, end; /* part of the steps, 0 … 1 */
    bool guess_mode;
    int mode;                             /* of a ControlNet-Union's hint; -1: not given */
    const char *preprocess;               /* "canny", or NULL: the picture is the hint */
    double low_threshold, high_threshold; /* of canny; -1: not given */
};

struct job_refiner {
    const char *model; /* NULL: no refiner */
    double switch_at;  /* 0 … 1 of the steps */
};

/* The second pass: the first one's picture enlarged and drawn again in the job's final size. */
struct job_hires {
    double scale;         /* of both sides, 1 … 4; -1: width and height say it */
    int width, height;    /* pixels of the second pass; 0: scale says them */
    double strength;      /* 0 … 1 */
    int steps;            /* 0: as many as the job's */
    const char *upscaler; /* "latent", "latent-nearest", … */
};

struct job_freeu {
    double b1, b2, s1, s2; /* -1: not given */
};

struct job_output {
    const char *format; /* "png", "jpeg", "webp" */
    int quality;        /* 1 … 100, of jpeg and webp */
    const char *prefix; /* of object names, or NULL */
    bool metadata;      /* embed the request in the file */
};

struct job_label {
    const char *key, *value;
};

struct job {
    /* ---- what to draw ---- */
    const char *model;           /* name in the catalogue */
    const char *prompt;          /* UTF-8 */
    const char *negative_prompt; /* NULL: absent, which is not the same as "" */
    int width, height;           /* pixels; 0: the model's own */
    int steps;                   /* 0: the model's */
    double guidance_scale;       /* at most 1 turns guidance off; -1: the model's */
    double guidance_rescale;     /* 0 … 1; -1: not given */
    double guidance_interval[2]; /* sigmas, low and high; -1: not given */
    struct job_freeu freeu;
    const char *sampler;  /* NULL: the model's */
    const char *schedule; /* NULL: the model's */
    double eta;           /* ddim and tcd */
    int64_t seed;         /* -1 until job_identify */
    int images;           /* image i uses seed + i */
    int clip_skip;        /* diffusers' meaning */
    struct job_lora loras[JOB_LORAS_MAX];
    size_t lora_count;
    const char *embeddings[JOB_EMBEDDINGS_MAX];
    size_t embedding_count;
    struct job_controlnet controlnets[JOB_CONTROLNETS_MAX];
    size_t controlnet_count;
    const char *init_image;      /* URI; NULL: text to image */
    double strength;             /* 0 … 1 with init_image, else -1 */
    const char *mask;            /* URI; white is redrawn; NULL: none */
    double image_guidance_scale; /* of a model that follows instructions; -1: the model's */
    struct job_refiner refiner;
    struct job_hires hires;
    double aesthetic_score, negative_aesthetic_score; /* -1: the model's */
    int original_size[2], target_size[2];             /* [height, width]; -1: the picture's */
    int crop[2];                                      /* [top, left]; -1: not given */
    const char *dialect;                              /* how the prompt is read */
    const char *rng;                                  /* "torch" or "philox" */
    const char *precision;                            /* "auto", "f32", "bf16", "f16" */

    /* ---- who wants it and when ---- */
    const char *id;     /* the idempotency key; NULL until job_identify */
    const char *batch;  /* or NULL */
    const char *tenant; /* "default" */
    const char *priority;
    int64_t deadline_ns, not_before_ns; /* wall clock; JOB_TIME_NONE */
    int max_attempts;
    const char *tier;  /* NULL: the catalogue's */
    bool confidential; /* only the confidential pool */
    double max_price;  /* of the job, in the price table's money; -1: none */
    struct job_output output;
    const char *callback; /* URL that gets the terminal record; or NULL */
    struct job_label labels[JOB_LABELS_MAX];
    size_t label_count;

    /* ---- in memory only ---- */
    struct json_doc *doc;                /* owns the strings */
    const struct json *root;             /* the object as it came, for x-* */
    char own_id[JOB_NAME_MAX_BYTES + 1]; /* where a derived id lives */
    uint64_t content;                    /* job_content, once identified */
    size_t bytes;                        /* of the request as it came */
};

/* One thing that is wrong with a request. */
struct job_problem {
    char field[96];    /* "controlnets[1].scale"; "" for the line as a whole */
    char value[128];   /* as it was written, cut to fit; "" when absent */
    char problem[384]; /* what is wrong and what would be right */
};

#define JOB_PROBLEMS_MAX 64

struct job_problems {
    size_t count;
    size_t dropped; /* found, but over JOB_PROBLEMS_MAX */
    struct job_problem items[JOB_PROBLEMS_MAX];
};

/* Adds a problem that the caller found. `value` may be NULL. */
void job_problem_add(struct job_problems *problems, const char *field, const char *value,
                     const char *format, ...) __attribute__((format(printf, 4, 5)));

/* Adds an error as a problem: of the field that its message begins with, "clip_skip: …", or of the
 * request as a whole. */
void job_problem_add_error(struct job_problems *problems, const struct err *error);

/* Writes the list as a JSON array of {"field", "value", "problem"}. */
void job_problems_write(const struct job_problems *problems, struct buf *out);

/* Reads and checks a request; the job is the caller's to release, in either case. `problems` is
 * emptied first and gets everything that is wrong at once. Errors: ERR_FORMAT, ERR_INVALID or
 * ERR_LIMIT (ERR_REJECT) with at least one problem; ERR_MEMORY (ERR_RETRY) with none. */
int job_parse(struct job *job, const char *text, size_t len, struct job_problems *problems,
              struct err *err) must_check;
void job_release(struct job *job);

/* Adds a problem for a schedule or an eta that the job's sampler does not take, which job_parse
 * does, too: for a job whose sampler was filled in since. */
void job_check_sampling(const struct job *job, struct job_problems *problems);

/* Moves a job to another place: `from` is empty afterwards. (An id of its own lives in the struct,
 * so that a plain copy would point back.) */
void job_move(struct job *to, struct job *from);

/* Gives a job without an id one that is made of `batch` (used where the job names none), line
 * number and content, a job without a seed one made of its id; computes `content`. A seed
 * whose last picture would pass 2^63-1 is refused by job_parse, a derived one never reaches it. */
int job_identify(struct job *job, const char *batch, uint64_t line, struct err *err) must_check;

/* Whether `id` may name a job: 1 … 128 of A-Z a-z 0-9 . _ - and neither "." nor "..". */
bool job_id_valid(const char *id);

/* Whether the job is drawn twice. */
bool job_has_hires(const struct job *job);

/* The size of the job's pictures, its own being of the first pass and given. */
void job_final_size(const struct job *job, int *width, int *height);

/* The pixels of a picture's steps, those of a second pass included. */
double job_pixel_steps(const struct job *job, int width, int height, int steps);

/* Appends the request as understood, in the contract's order, defaults filled in, fields that are
 * still the model's to choose left out. Equal requests give equal bytes. */
void job_encode(const struct job *job, struct buf *out);

/* Writes the JSON Schema of the contract. */
void job_schema_write(struct buf *out);

#endif
