/*
 * Layers that some samples of a pass see changed: the batch is cut into runs of samples that see
 * the same, and each goes through the back end on its own. An operator computes a sample alike
 * whatever is beside it, so a sample's bytes do not depend on what the others see.
 */
#include "engine/backend.h"

static const struct change *change_of(const struct pass_run *run, int slot)
{
    return run->changes != NULL ? run->changes[slot - 1] : NULL;
}

bool pass_changes(const struct pass *pass, int slot)
{
    for (int i = 0; slot > 0 && i < pass->run_count; i++)
        if (change_of(&pass->runs[i], slot) != NULL)
            return true;
    return false;
}

static struct affine affine_of(const struct affine *all, int first, int channels)
{
    struct affine view = *all;
    size_t skipped = (size_t)first * (size_t)channels;

    if (all->scale != NULL) {
        view.scale += skipped;
        view.shift += skipped;
    }
    return view;
}

/* The additions of one call and the tensors they read. */
struct additions {
    struct addition items[ADDITIONS_MAX];
    struct tensor t[ADDITIONS_MAX];
    int count;
};

static struct tensor *add_branch(struct pass *pass, struct additions *all,
                                 const struct change *change, int i, const struct tensor *y)
{
    const struct branch *branch = change->branches[i].branch;
    struct tensor *t = &all->t[all->count];

    *t = pass_tensor_of(pass, DTYPE_F32, y->n, y->h, y->w, branch->up.in);
    all->items[all->count++] =
        (struct addition){.t = t, .up = &branch->up, .scale = change->branches[i].scale};
    return t;
}

static void drop_additions(struct pass *pass, struct additions *all)
{
    for (int i = all->count - 1; i >= 0; i--)
        pass_drop(pass, &all->t[i]);
}

/* One run's samples, their views in `args`. */
static void conv2d_run(struct pass *pass, struct conv2d args, const struct change *change)
{
    struct additions all = {.count = 0};

    for (int i = 0; change != NULL && i < change->branch_count; i++) {
        struct conv2d down = {.conv = &change->branches[i].branch->down_filter,
                              .x = args.x,
                              .pre = args.pre,
                              .upsample = args.upsample,
                              .pad_end_only = args.pad_end_only};
        down.y = add_branch(pass, &all, change, i, args.y);
        if (!pass->failed)
            pass->backend->ops->conv2d(pass, &down);
    }
    if (change != NULL && change->conv != NULL)
        args.conv = change->conv;
    args.additions = all.items;
    args.addition_count = all.count;
    if (!pass->failed)
        pass->backend->ops->conv2d(pass, &args);
    drop_additions(pass, &all);
}

static void matmul_run(struct pass *pass, struct matmul args, const struct change *change)
{
    struct additions all = {.count = 0};

    for (int i = 0; change != NULL && i < change->branch_count; i++) {
        struct matmul down = {
            .linear = &change->branches[i].branch->down, .x = args.x, .pre = args.pre};
        down.y = add_branch(pass, &all, change, i, args.y);
        if (!pass->failed)
            pass->backend->ops->matmul(pass, &down);
    }
    if (change != NULL && change->linear != NULL)
        args.linear = change->linear;
    args.additions = all.items;
    args.addition_count = all.count;
    if (!pass->failed)
        pass->backend->ops->matmul(pass, &args);
    drop_additions(pass, &all);
}

/* The samples from `*run` on that see one and the same of a layer; `*run` moves behind them. */
static int next_samples(const struct pass *pass, int *run, int slot, const struct change **change)
{
    int samples = 0;

    *change = change_of(&pass->runs[*run], slot);
    while (*run < pass->run_count && change_of(&pass->runs[*run], slot) == *change)
        samples += pass->runs[(*run)++].samples;
    return samples;
}

void changed_conv2d(struct pass *pass, const struct conv2d *args)
{
    const struct change *change;

    for (int run = 0, first = 0, count; run < pass->run_count; first += count) {
        struct tensor x, y, time, residual;
        struct conv2d part = *args;
        struct affine pre;

        count = next_samples(pass, &run, args->conv->slot, &change);
        x = tensor_samples(args->x, first, count);
        y = tensor_samples(args->y, first, count);
        part.x = &x;
        part.y = &y;
        if (args->pre != NULL) {
            pre = affine_of(args->pre, first, x.c);
            part.pre = &pre;
        }
        if (args->time != NULL) {
            time = tensor_samples(args->time, first, count);
            part.time = &time;
        }
        if (args->residual != NULL) {
            residual = tensor_samples(args->residual, first, count);
            part.residual = &residual;
        }
        conv2d_run(pass, part, change);
    }
}

void changed_matmul(struct pass *pass, const struct matmul *args)
{
    const struct change *change;

    for (int run = 0, first = 0, count; run < pass->run_count; first += count) {
        struct tensor x, y, residual;
        struct matmul part = *args;
        struct affine pre;

        count = next_samples(pass, &run, args->linear->slot, &change);
        x = tensor_samples(args->x, first, count);
        y = tensor_samples(args->y, first, count);
        part.x = &x;
        part.y = &y;
        if (args->pre != NULL) {
            pre = affine_of(args->pre, first, x.c);
            part.pre = &pre;
        }
        if (args->residual != NULL) {
            residual = tensor_samples(args->residual, first, count);
            part.residual = &residual;
        }
        matmul_run(pass, part, change);
    }
}
