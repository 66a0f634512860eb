/*
 * cases.h: operators over random inputs, the reference beside a back end under test; shared by the
 * test of the CPU's kernels and by those of the card's, which may have no test library.
 */
#ifndef ATELIER_TESTS_OPS_CASES_H
#define ATELIER_TESTS_OPS_CASES_H

#include "engine/backend.h"

#include <stdint.h>

/* One operator; each reads the members that it knows. */
struct shape {
    int n, h, w, in, out;
    int stride;
    bool upsample, odd_up, pad_end, pre, time, residual;
    enum activation act;
    int heads, keys;
    bool causal;
};

struct bench;
struct input;
/* Runs samples [first, first + n) and leaves the output in planes; returns values per sample. */
typedef size_t (*run_fn)(struct bench *b, const struct shape *s, const struct input *in, int first,
                         int n, float *planes);
typedef int (*open_fn)(struct backend **backend, const struct backend_options *options,
                       struct err *err);

size_t run_conv(struct bench *b, const struct shape *s, const struct input *in, int first, int n,
                float *planes);
size_t run_matmul(struct bench *b, const struct shape *s, const struct input *in, int first, int n,
                  float *planes);
/* The same over layers that the samples see changed, by branches and in place: sample i as i mod 3
 * says. */
size_t run_changed_conv(struct bench *b, const struct shape *s, const struct input *in, int first,
                        int n, float *planes);
size_t run_changed_matmul(struct bench *b, const struct shape *s, const struct input *in, int first,
                          int n, float *planes);
size_t run_attention(struct bench *b, const struct shape *s, const struct input *in, int first,
                     int n, float *planes);
size_t run_layer_norm(struct bench *b, const struct shape *s, const struct input *in, int first,
                      int n, float *planes);
size_t run_concat(struct bench *b, const struct shape *s, const struct input *in, int first, int n,
                  float *planes);
size_t run_mean(struct bench *b, const struct shape *s, const struct input *in, int first, int n,
                float *planes);
size_t run_damp(struct bench *b, const struct shape *s, const struct input *in, int first, int n,
                float *planes);
size_t run_silu(struct bench *b, const struct shape *s, const struct input *in, int first, int n,
                float *planes);
/* y += 0.37 · x */
size_t run_add(struct bench *b, const struct shape *s, const struct input *in, int first, int n,
               float *planes);
size_t run_embed(struct bench *b, const struct shape *s, const struct input *in, int first, int n,
                 float *planes);

/* What a comparison found. */
struct verdict {
    double error; /* relative, against the reference */
    bool close;   /* within the type's limit */
    int strange;  /* the first sample whose bytes differ from its own alone, or -1 */
};

/* Runs the whole batch by both and each sample alone by the back end under test. The random inputs
 * are the same in every call. */
struct verdict cases_compare(open_fn open, run_fn run, const struct shape *s,
                             const struct backend_options *options);

#endif
