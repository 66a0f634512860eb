/* Opening devices and models. */
#include "engine/defaults.h"
#include "engine/runtime.h"
#include "engine/synthetic.h"

#if defined(ATELIER_DNNL)
#include "engine/cpu/kernels.h"
#endif

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#if defined(ATELIER_DNNL)
#define DNNL_NAME " dnnl,"
#else
#define DNNL_NAME ""
#endif
#if defined(ATELIER_CUDA)
#define CUDA_NAME " cuda,"
#else
#define CUDA_NAME ""
#endif

const char *engine_version(void)
{
    return ATELIER_VERSION;
}

/* ---- the device ---- */

/* What the process may use: the machine's memory or its control group's limit, less a tenth. */
static size_t default_memory(void)
{
    size_t bytes = (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE);
    unsigned long long limit;
    FILE *file = fopen("/sys/fs/cgroup/memory.max", "r");

    if (file != NULL) {
        if (fscanf(file, "%llu", &limit) == 1 && limit < bytes)
            bytes = (size_t)limit;
        fclose(file);
    }
    return bytes / 10 * 9;
}

#define CARD_PREFIX "cuda:"

static bool names_card(const char *name)
{
    return strcmp(name, "cuda") == 0 || strncmp(name, CARD_PREFIX, strlen(CARD_PREFIX)) == 0;
}

/* The number in "cuda:1"; -1: it is none. */
static int card_number(const char *name)
{
    const char *digits = name + strlen(CARD_PREFIX);
    size_t len;

    if (strncmp(name, CARD_PREFIX, strlen(CARD_PREFIX)) != 0)
        return 0;
    len = strspn(digits, "0123456789");
    return len == 0 || len > 4 || digits[len] != '\0' ? -1 : atoi(digits);
}

static int open_named(struct backend **backend, const char *name,
                      const struct backend_options *options, struct err *err)
{
    if (strcmp(name, "ref") == 0)
        return backend_ref_open(backend, options, err);
    if (strcmp(name, "outline") == 0)
        return backend_outline_open(backend, err);
#if defined(ATELIER_DNNL)
    if (strcmp(name, "dnnl") == 0)
        return backend_dnnl_open(backend, options, err);
#endif
#if defined(ATELIER_CUDA)
    if (names_card(name) && options->card >= 0)
        return backend_cuda_open(backend, options, err);
#endif
    return err_set(err, ERR_UNSUPPORTED, ERR_FATAL,
                   "there is no back end '%s' in this build; it has" CUDA_NAME DNNL_NAME " ref",
                   name);
}

static const char *cpu_backend(void)
{
#if defined(ATELIER_DNNL)
    return "dnnl";
#else
    return "ref";
#endif
}

static bool native_bf16(const char *isa)
{
#if defined(ATELIER_DNNL)
    const struct cpu_kernels *kernels = cpu_kernels_find(isa);
    return kernels != NULL && kernels->bf16_dot;
#else
    (void)isa;
    return false;
#endif
}

static const char *processor(void)
{
#if defined(ATELIER_DNNL)
    return cpu_brand();
#else
    return "any processor";
#endif
}

static void warn(const struct engine *engine, const char *message)
{
    if (engine->warn != NULL)
        engine->warn(engine->user, message);
}

int engine_cards(void)
{
#if defined(ATELIER_CUDA)
    return backend_cuda_cards();
#else
    return 0;
#endif
}

/* What a device computes in when nobody says: bf16 where it is native. */
static enum precision choose_precision(const char *name, const struct engine_options *o)
{
    bool native = names_card(name) || (strcmp(name, "dnnl") == 0 && native_bf16(o->isa));

    return o->precision != PRECISION_AUTO ? o->precision : native ? PRECISION_BF16 : PRECISION_F32;
}

/* While a pass waits for a card. */
static void let_in(void *engine)
{
    fair_lock_give(&((struct engine *)engine)->lock);
}

static void take_back(void *engine)
{
    fair_lock_take(&((struct engine *)engine)->lock);
}

static int open_device(struct engine *engine, const char *name, const struct engine_options *o,
                       struct err *err)
{
    enum precision precision = choose_precision(name, o);
    struct backend_options options = {.compute = precision == PRECISION_BF16  ? DTYPE_BF16
                                                 : precision == PRECISION_F16 ? DTYPE_F16
                                                                              : DTYPE_F32,
                                      .card = card_number(name),
                                      .isa = o->isa,
                                      .threads = o->threads,
                                      .weights_16bit = o->weights_16bit};
    struct backend *b;

    if (precision == PRECISION_F16 && strcmp(name, "dnnl") == 0)
        return err_set(err, ERR_UNSUPPORTED, ERR_FATAL,
                       "the dnnl back end computes in f32 or bf16, not in f16");
    if (open_named(&b, name, &options, err) != 0)
        return -1;
    engine->backend = b;
    engine->info = (struct engine_info){.backend = b->ops->name,
                                        .isa = b->isa,
                                        .processor = b->device ? b->device : processor(),
                                        .precision = precision,
                                        .threads = b->threads,
                                        .memory_bytes = b->memory_bytes,
                                        .batch_pixels = b->batch_pixels,
                                        .overlaps = b->lanes > 1};
    b->wait_begin = let_in;
    b->wait_end = take_back;
    b->wait_user = engine;
    engine->memory_max_bytes = o->memory_max_bytes   ? o->memory_max_bytes
                               : b->memory_bytes > 0 ? b->memory_bytes / 10 * 9
                                                     : default_memory();
    b->memory_max_bytes = engine->memory_max_bytes;
    return 0;
}

#if defined(ATELIER_CUDA)
/* Whether a card is not there, and not one that is there amiss (device_open). */
static bool is_absence(const struct err *err)
{
    static const char absent[] = "no CUDA device";
    return strncmp(err->message, absent, sizeof(absent) - 1) == 0;
}
#endif

/* "auto": a card if this build serves them and there is one, else the processor. */
static int open_wanted(struct engine *engine, const struct engine_options *o, struct err *err)
{
    bool any = strcmp(o->backend, "auto") == 0;

#if defined(ATELIER_CUDA)
    if (any && open_device(engine, "cuda", o, err) == 0)
        return 0;
    if (any && err->code != ERR_DEVICE)
        return -1;
    if (any && !is_absence(err)) {
        char text[ERR_MESSAGE_MAX_BYTES + 64];
        snprintf(text, sizeof(text), "the processor draws instead of the card: %s", err->message);
        warn(engine, text);
    }
#endif
    if (any || strcmp(o->backend, "cpu") == 0)
        return open_device(engine, cpu_backend(), o, err);
    return open_device(engine, o->backend, o, err);
}

int engine_create(struct engine **out, const struct engine_options *o, struct err *err)
{
    struct engine *engine = calloc(1, sizeof(*engine));

    if (engine == NULL)
        return err_set(err, ERR_MEMORY, ERR_FATAL, "no memory for an engine");
    engine->warn = o->warn;
    engine->user = o->user;
    if (open_wanted(engine, o, err) != 0) {
        free(engine);
        return -1;
    }
    fair_lock_init(&engine->lock);
    pthread_mutex_init(&engine->counts_lock, NULL);
    if (engine->backend->warning != NULL)
        warn(engine, engine->backend->warning);
    if (engine->info.precision == PRECISION_BF16 && strcmp(engine->info.backend, "dnnl") == 0 &&
        !native_bf16(o->isa))
        warn(engine, "bf16 is emulated on this processor; f32 is faster and more exact");
    *out = engine;
    return 0;
}

void engine_free(struct engine *engine)
{
    if (engine == NULL)
        return;
    while (engine->models != NULL)
        engine_unload(engine->models);
    fair_lock_take(&engine->lock);
    lanes_release(engine);
    fair_lock_give(&engine->lock);
    engine->backend->ops->destroy(engine->backend);
    pthread_mutex_destroy(&engine->counts_lock);
    fair_lock_destroy(&engine->lock);
    free(engine);
}

const struct engine_info *engine_info(const struct engine *engine)
{
    return &engine->info;
}

struct memory_use engine_memory(const struct engine *engine)
{
    return (struct memory_use){.weights_bytes = engine->backend->weights_bytes,
                               .activations_bytes = lanes_bytes(engine)};
}

/* ---- loading ---- */

static uint64_t mix(uint64_t hash, const void *bytes, size_t len)
{
    for (size_t i = 0; i < len; i++)
        hash = (hash ^ ((const unsigned char *)bytes)[i]) * 0x100000001b3u; /* FNV-1a */
    return hash;
}

/* Tells models apart for saved sessions: sizes and the first layer's weights. */
static uint64_t fingerprint(struct model *model)
{
    const struct stored_tensor *t =
        checkpoint_find(model->checkpoint, COMPONENT_UNET, "conv_in.weight");
    uint64_t hash = mix(0xcbf29ce484222325u, &model->info.parameters, sizeof(uint64_t));

    return t == NULL ? hash : mix(hash, t->data, (size_t)t->count * dtype_bytes(t->dtype));
}

static int make_tokenizer(struct model *model, struct encoder *encoder, struct err *err)
{
    const int rows = encoder->clip.tokens.rows;
    /* OpenCLIP pads with its token 0, which is "!". */
    const char *pad =
        checkpoint_family(model->checkpoint) == FAMILY_SD2 || encoder->component == COMPONENT_TEXT_2
            ? "!"
            : TOKENIZER_END;
    char folder[4096];
    int rc;

    snprintf(folder, sizeof(folder), "%s/%s", model->info.path,
             component_tokenizer(encoder->component));
    rc = checkpoint_format(model->checkpoint) == CHECKPOINT_DIFFUSERS
             ? tokenizer_create_folder(&encoder->tokenizer, folder, err)
             : tokenizer_create_builtin(&encoder->tokenizer, pad, err);
    if (rc != 0)
        return -1;
    if (tokenizer_vocabulary_size(encoder->tokenizer) > (uint32_t)rows)
        return err_set(err, ERR_FORMAT, ERR_REJECT, "%s: its %s has %u tokens, its %s %d",
                       model->info.path, component_tokenizer(encoder->component),
                       tokenizer_vocabulary_size(encoder->tokenizer),
                       component_name(encoder->component), rows);
    return 0;
}

static int make_encoder(struct model *model, enum component component, struct err *err)
{
    struct encoder *encoder = &model->encoders[model->encoder_count++];
    struct clip_config clip;

    encoder->component = component;
    encoder->clip.parameters.backend = model->engine->backend;
    if (clip_config_read(&clip, model->checkpoint, component, err) != 0 ||
        clip_bind(&encoder->clip, &clip, model->checkpoint, component, model->engine->backend,
                  err) != 0)
        return -1;
    if (clip.positions < model->tokens)
        model->tokens = clip.positions;
    return make_tokenizer(model, encoder, err);
}

/* The encoders' embeddings side by side are the UNet's text; the last one's pooled vector goes with
 * it where the UNet takes one. */
static int check_widths(const struct model *model, struct err *err)
{
    const struct unet_config *unet = &model->unet.config;
    const struct encoder *last = &model->encoders[model->encoder_count - 1];
    int width = 0, pooled = clip_pooled_width(&last->clip.config);

    for (int i = 0; i < model->encoder_count; i++)
        width += model->encoders[i].clip.config.hidden;
    if (unet->context != width)
        return err_set(err, ERR_FORMAT, ERR_REJECT,
                       "%s: its UNet expects text embeddings of width %d, its text encoders make "
                       "%d",
                       model->info.path, unet->context, width);
    if (unet->pooled != 0 && unet->pooled != pooled)
        return err_set(err, ERR_FORMAT, ERR_REJECT,
                       "%s: its UNet expects a pooled text of width %d beside %d numbers, its text "
                       "encoder makes %d",
                       model->info.path, unet->pooled, unet->ids, pooled);
    return 0;
}

static int bind_components(struct model *model, struct err *err)
{
    static const enum component TEXTS[ENCODERS_MAX] = {COMPONENT_TEXT, COMPONENT_TEXT_2};
    struct backend *backend = model->engine->backend;
    struct checkpoint *checkpoint = model->checkpoint;
    struct unet_config unet;
    struct vae_config vae;

    if (unet_config_read(&unet, checkpoint, err) != 0 ||
        vae_config_read(&vae, checkpoint, err) != 0)
        return -1;
    model->unet.config = unet;
    model->tokens = TOKENIZER_CLIP_TOKENS;
    for (int i = 0; i < ENCODERS_MAX; i++)
        if (checkpoint_has(checkpoint, TEXTS[i]) && make_encoder(model, TEXTS[i], err) != 0)
            return -1;
    if (check_widths(model, err) != 0 ||
        unet_bind(&model->unet, &unet, checkpoint, backend, err) != 0 ||
        vae_bind(&model->vae, &vae, checkpoint, backend, err) != 0)
        return -1;
    return 0;
}

static void describe(struct model *model)
{
    const struct model_info sizes = model->info;
    enum family family = checkpoint_family(model->checkpoint);
    int factor = vae_factor(&model->vae.config);
    struct defaults defaults =
        defaults_read(model->checkpoint, &model->sampler, model->unet.config.in_channels, factor);

    model->info = (struct model_info){
        .path = sizes.path,
        .family = family_name(family),
        .format =
            checkpoint_format(model->checkpoint) == CHECKPOINT_LDM ? "single file" : "diffusers",
        .prediction = prediction_name(model->sampler.prediction),
        .width = defaults.sample_w * factor,
        .height = defaults.sample_h * factor,
        .vae_factor = factor,
        .sampler = model->sampler.own,
        .steps = defaults.steps,
        .guidance_scale = defaults.guidance_scale,
    };
    model->zero_negative = defaults.zero_negative;
    for (int i = 0; i < COMPONENT_COUNT; i++) {
        uint64_t elements, bytes;
        checkpoint_size(model->checkpoint, (enum component)i, &elements, &bytes);
        model->info.parameters += elements;
        model->info.file_bytes += bytes;
    }
}

struct unused {
    const struct engine *engine;
    const char *path;
    int count;
    char first[CHECKPOINT_NAME_MAX_BYTES];
};

static void count_unused(void *user, const char *name)
{
    struct unused *unused = user;

    if (unused->count++ == 0)
        snprintf(unused->first, sizeof(unused->first), "%s", name);
}

static void warn_unused(struct model *model)
{
    struct unused unused = {.path = model->info.path};
    char message[ERR_MESSAGE_MAX_BYTES];

    checkpoint_unused(model->checkpoint, count_unused, &unused);
    if (unused.count == 0)
        return;
    snprintf(message, sizeof(message),
             "%.400s: %d tensor%s not used by this kind of model, the first is '%s'", unused.path,
             unused.count, unused.count == 1 ? " is" : "s are", unused.first);
    warn(model->engine, message);
}

/* Where a model comes from: a path, or nowhere. */
struct source {
    const char *path;
    const struct synthetic *synthetic;
    const struct model_options *options; /* may be NULL */
};

static int load(struct model *model, const struct source *source, struct err *err)
{
    const struct model_options *options = source->options;
    int rc = source->path != NULL
                 ? checkpoint_open(&model->checkpoint, source->path, err)
                 : checkpoint_open_synthetic(&model->checkpoint, source->synthetic, err);

    if (rc != 0)
        return -1;
    model->info.path = checkpoint_path(model->checkpoint);
    if (bind_components(model, err) != 0 ||
        defaults_scheduler(&model->sampler, model->checkpoint,
                           options != NULL ? options->prediction : NULL, err) != 0)
        return -1;
    describe(model);
    model->fingerprint = fingerprint(model);
    return 0;
}

/* What a model holds, listed or not; the struct stays, empty. */
static void release_model(struct model *model)
{
    for (int i = 0; i < model->encoder_count; i++)
        clip_release(&model->encoders[i].clip);
    text_cache_release(&model->texts);
    unet_release(&model->unet);
    vae_release(&model->vae);
    for (int i = 0; i < model->encoder_count; i++)
        tokenizer_free(model->encoders[i].tokenizer);
    checkpoint_close(model->checkpoint);
}

static void begin_model(struct model *model, struct engine *engine)
{
    *model = (struct model){.engine = engine};
    model->unet.parameters.backend = model->vae.parameters.backend = engine->backend;
}

/* How much weights may grow to: what open sessions were promised stays free. */
static void set_budget(struct engine *engine)
{
    size_t kept = lanes_bytes(engine);

    pthread_mutex_lock(&engine->counts_lock);
    if (engine->sessions > 0 && engine->promised_bytes > kept)
        kept = engine->promised_bytes;
    engine->backend->weights_max_bytes =
        engine->memory_max_bytes > kept ? engine->memory_max_bytes - kept : 1;
    pthread_mutex_unlock(&engine->counts_lock);
}

static int sessions_open(struct engine *engine)
{
    int open;

    pthread_mutex_lock(&engine->counts_lock);
    open = engine->sessions;
    pthread_mutex_unlock(&engine->counts_lock);
    return open;
}

/* Drops something that nobody uses; false when there is nothing. */
static bool spare_memory(struct engine *engine)
{
    bool spared;

    fair_lock_take(&engine->lock);
    spared = adaptations_evict(engine) || lanes_spare(engine);
    if (!spared && sessions_open(engine) == 0 && lanes_bytes(engine) > 0) {
        lanes_release(engine);
        spared = true;
    }
    fair_lock_give(&engine->lock);
    return spared;
}

int load_within_budget(struct engine *engine, const struct loader *loader, void *what,
                       const char *name, struct err *err)
{
    for (;;) {
        set_budget(engine);
        if (loader->load(what, err) == 0)
            return 0;
        if (err->code == ERR_MEMORY && !engine_lost(engine, err))
            err_set(err, ERR_MEMORY, ERR_RETRY,
                    "%s: its weights do not fit; the engine may use %zu MiB, %zu MiB of it beside "
                    "what pictures need",
                    name, engine->memory_max_bytes >> 20, engine->backend->weights_max_bytes >> 20);
        fair_lock_take(&engine->lock);
        loader->release(what);
        fair_lock_give(&engine->lock);
        if (err->code != ERR_MEMORY || !spare_memory(engine))
            return -1;
    }
}

/* A model on its way, and what it is loaded from. */
struct loading {
    struct model *model;
    struct engine *engine;
    const struct source *source;
};

static int load_model(void *what, struct err *err)
{
    const struct loading *l = what;

    begin_model(l->model, l->engine);
    return load(l->model, l->source, err);
}

static void drop_model(void *what)
{
    release_model(((const struct loading *)what)->model);
}

static int load_and_list(struct model **out, struct engine *engine, const struct source *source,
                         struct err *err)
{
    static const struct loader MODELS = {.load = load_model, .release = drop_model};
    const char *name = source->path != NULL ? source->path : "random weights";
    struct model *model = malloc(sizeof(*model));
    struct loading loading = {.model = model, .engine = engine, .source = source};

    if (model == NULL)
        return err_set(err, ERR_MEMORY, ERR_RETRY, "no memory for a model");
    if (load_within_budget(engine, &MODELS, &loading, name, err) != 0) {
        free(model);
        return -1;
    }
    pthread_mutex_lock(&engine->counts_lock);
    model->next = engine->models;
    engine->models = model;
    pthread_mutex_unlock(&engine->counts_lock);
    warn_unused(model);
    *out = model;
    return 0;
}

int engine_load(struct model **model, struct engine *engine, const char *path,
                const struct model_options *options, struct err *err)
{
    return load_and_list(model, engine, &(struct source){.path = path, .options = options}, err);
}

int engine_load_synthetic(struct model **model, struct engine *engine, const char *family,
                          struct err *err)
{
    struct source source = {.path = NULL};

    for (int f = FAMILY_SD1; f <= FAMILY_SDXL_REFINER && source.synthetic == NULL; f++)
        if (strcmp(family_name((enum family)f), family) == 0)
            source.synthetic = synthetic_of((enum family)f);
    if (source.synthetic == NULL)
        return err_set(err, ERR_UNSUPPORTED, ERR_REJECT,
                       "there are random weights for sd1, sdxl and sdxl-refiner, not for '%s'",
                       family);
    return load_and_list(model, engine, &source, err);
}

static void unlist(struct model *model)
{
    struct engine *engine = model->engine;
    struct model **link;

    pthread_mutex_lock(&engine->counts_lock);
    for (link = &engine->models; *link != model; link = &(*link)->next)
        continue;
    *link = model->next;
    pthread_mutex_unlock(&engine->counts_lock);
}

void engine_unload(struct model *model)
{
    if (model == NULL)
        return;
    fair_lock_take(&model->engine->lock);
    unlist(model);
    model_unload_adapters(model);
    model_unload_controls(model);
    release_model(model);
    fair_lock_give(&model->engine->lock);
    free(model);
}

const struct model_info *model_info(const struct model *model)
{
    return &model->info;
}

enum dtype model_act(const struct model *model)
{
    return model->engine->backend->compute;
}
