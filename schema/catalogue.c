#include "schema/catalogue.h"

#include "common/json.h"
#include "common/nearest.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FILE_NAME "catalogue.json"
#define NAMES_SHOWN 8

static int by_name(const void *a, const void *b)
{
    const struct catalogue_model *x = a, *y = b;
    int order = strcmp(x->name, y->name);
    return order || !x->path || !y->path ? order : strcmp(x->path, y->path);
}

/* The length of a model's name in a file name, 0 when it is no model. */
static size_t name_length(const char *dir, const char *entry)
{
    char path[FILE_PATH_MAX_BYTES], index[FILE_PATH_MAX_BYTES];
    size_t stem = file_tensor_stem(entry);
    bool whole = stem && (strcmp(entry + stem, ".safetensors") == 0 ||
                          strcmp(entry + stem, ".ckpt") == 0); /* others hold adapters */
    if (entry[0] == '.' || file_join(path, dir, entry, NULL) != 0)
        return 0;
    if (!file_is_dir(path))
        return whole ? stem : 0;
    return file_join(index, path, "model_index.json", NULL) == 0 && file_exists(index)
               ? strlen(entry)
               : 0;
}

static int add(struct catalogue *catalogue, const char *entry, size_t name_len, struct err *err)
{
    char path[FILE_PATH_MAX_BYTES];
    if (catalogue->count == CATALOGUE_MODELS_MAX)
        return err_set(err, ERR_LIMIT, ERR_FATAL, "%s holds more than %d models", catalogue->dir,
                       CATALOGUE_MODELS_MAX);
    if (file_join(path, catalogue->dir, entry, err) != 0)
        return -1;
    void *models = realloc(catalogue->models, (catalogue->count + 1) * sizeof(*catalogue->models));
    if (models)
        catalogue->models = models;
    char *name = strndup(entry, name_len), *own_path = strdup(path);
    if (!models || !name || !own_path) {
        free(name);
        free(own_path);
        return err_set(err, ERR_MEMORY, ERR_FATAL, "out of memory to list %s", catalogue->dir);
    }
    catalogue->models[catalogue->count++] =
        (struct catalogue_model){.name = name, .path = own_path, .guidance_scale = -1};
    return 0;
}

/* Of files that differ in their endings alone: .safetensors lie behind .ckpt, and stay. */
static void take_best(struct catalogue *catalogue)
{
    size_t kept = 0;
    for (size_t i = 0; i < catalogue->count; i++) {
        struct catalogue_model *model = &catalogue->models[i];
        if (kept > 0 && strcmp(catalogue->models[kept - 1].name, model->name) == 0) {
            free(catalogue->models[--kept].name);
            free(catalogue->models[kept].path);
        }
        catalogue->models[kept++] = *model;
    }
    catalogue->count = kept;
}

static int list(struct catalogue *catalogue, struct err *err)
{
    struct dirent *entry;
    int rc = 0;
    DIR *dir = opendir(catalogue->dir);
    if (!dir) {
        file_error(err, errno, "open the models directory", catalogue->dir);
        err->class = ERR_FATAL;
        return -1;
    }
    while (rc == 0 && (entry = readdir(dir)) != NULL) {
        size_t len = name_length(catalogue->dir, entry->d_name);
        if (len > 0)
            rc = add(catalogue, entry->d_name, len, err);
    }
    closedir(dir);
    if (catalogue->count > 0)
        qsort(catalogue->models, catalogue->count, sizeof(*catalogue->models), by_name);
    take_best(catalogue);
    return rc;
}

static int bad(struct err *err, const struct catalogue *catalogue, const char *model,
               const char *key, const char *problem)
{
    return err_set(err, ERR_INVALID, ERR_FATAL, "%s/" FILE_NAME ": models.%.80s.%.80s: %s",
                   catalogue->dir, model, key, problem);
}

/* The job contract judges the defaults: they are read as a job would be. */
static int read_defaults(const struct catalogue *catalogue, struct catalogue_model *model,
                         const struct json *defaults, struct err *err)
{
    static const char *const allowed[] = {"width",   "height",   "steps",          "guidance_scale",
                                          "sampler", "schedule", "negative_prompt"};
    struct buf text;
    struct job job;
    struct job_problems *problems = malloc(sizeof(*problems));
    int rc = -1;
    buf_init(&text, JOB_MAX_BYTES);
    buf_str(&text, "{\"model\":\"m\",\"prompt\":\"\"");
    for (const struct json *value = defaults->child; value; value = value->next) {
        bool known = false;
        for (size_t i = 0; i < sizeof(allowed) / sizeof(allowed[0]); i++)
            known = known || strcmp(allowed[i], value->key) == 0;
        if (!known) {
            bad(err, catalogue, model->name, value->key, "is no default that a catalogue can give");
            goto out;
        }
        buf_printf(&text, ",\"%s\":", value->key);
        json_write_canonical(&text, value);
    }
    buf_char(&text, '}');
    if (text.failed || !problems) {
        err_set(err, ERR_MEMORY, ERR_FATAL, "out of memory to read " FILE_NAME);
        goto out;
    }
    if (job_parse(&job, text.data, text.len, problems, NULL) == 0) {
        model->width = job.width;
        model->height = job.height;
        model->steps = job.steps;
        model->guidance_scale = job.guidance_scale;
        model->sampler = job.sampler;   /* points into a table */
        model->schedule = job.schedule; /* the same */
        model->negative_prompt = json_string_or(json_get(defaults, "negative_prompt"), NULL);
        rc = 0;
    } else {
        bad(err, catalogue, model->name, problems->items[0].field, problems->items[0].problem);
    }
    job_release(&job);
out:
    free(problems);
    buf_release(&text);
    return rc;
}

static bool is_one_of(const char *text, const char *const *names)
{
    for (; text && *names; names++)
        if (strcmp(text, *names) == 0)
            return true;
    return false;
}

static bool is_sha256(const char *text)
{
    return strlen(text) == 64 && strspn(text, "0123456789abcdef") == 64;
}

/* One key of a model's entry but "defaults"; false for what is unknown or out of range. */
static bool read_key(struct catalogue_model *model, const struct json *value)
{
    static const char *const tiers[] = {"fast", "standard", "premium", NULL};
    static const char *const predictions[] = {"epsilon", "v_prediction", NULL};
    static const char *const families[] = {"sd15", "sd21", "sdxl", "sdxl-refiner", NULL};
    const char *key = value->key, *text = json_string_or(value, NULL);
    int64_t number;
    if (strcmp(key, "bytes") == 0 && json_int64(value, &number) && number > 0)
        model->bytes = (uint64_t)number;
    else if (strcmp(key, "tier") == 0 && is_one_of(text, tiers))
        model->tier = text;
    else if (strcmp(key, "prediction") == 0 && is_one_of(text, predictions))
        model->prediction = text;
    else if (strcmp(key, "family") == 0 && is_one_of(text, families))
        model->family = text;
    else if (strcmp(key, "source") == 0 && text && strstr(text, "://"))
        model->source = text;
    else if (strcmp(key, "sha256") == 0 && text && is_sha256(text))
        model->sha256 = text;
    else
        return strcmp(key, "description") == 0 && text;
    return true;
}

static int read_entry(struct catalogue *catalogue, const struct json *entry, struct err *err)
{
    struct catalogue_model *model = &catalogue->models[catalogue_find(catalogue, entry->key)];
    model->listed = true;
    for (const struct json *value = entry->child; value; value = value->next) {
        if (strcmp(value->key, "defaults") == 0 && value->type == JSON_OBJECT) {
            if (read_defaults(catalogue, model, value, err) != 0)
                return -1;
        } else if (!read_key(model, value)) {
            return bad(err, catalogue, entry->key, value->key,
                       "is no key with a good value (known are tier: fast, standard, premium; "
                       "family: sd15, sd21, sdxl, sdxl-refiner; prediction: epsilon, v_prediction; "
                       "source: a URI; sha256: 64 hexadecimal digits; bytes; defaults; "
                       "description)");
        }
    }
    return 0;
}

/* Every model of the file has a place: it is beside it, or has a source. */
static int add_listed(struct catalogue *catalogue, const struct json *models, struct err *err)
{
    char hint[512];
    for (const struct json *entry = models->child; entry; entry = entry->next) {
        if (entry->type != JSON_OBJECT)
            return bad(err, catalogue, entry->key, "", "must be an object");
        if (catalogue_find(catalogue, entry->key) >= 0)
            continue;
        if (!json_get(entry, "source")) {
            catalogue_hint(catalogue, entry->key, hint, sizeof(hint));
            return err_set(err, ERR_NOT_FOUND, ERR_FATAL,
                           "%s/" FILE_NAME ": there is no model \"%.80s\" beside it, and it has no "
                           "source%s",
                           catalogue->dir, entry->key, hint);
        }
        if (add(catalogue, entry->key, strlen(entry->key), err) != 0)
            return -1;
        struct catalogue_model *model = &catalogue->models[catalogue->count - 1];
        free(model->path);
        model->path = NULL;
        qsort(catalogue->models, catalogue->count, sizeof(*catalogue->models), by_name);
    }
    return 0;
}

static int read_file(struct catalogue *catalogue, struct err *err)
{
    char path[FILE_PATH_MAX_BYTES];
    if (file_join(path, catalogue->dir, FILE_NAME, err) != 0)
        return -1;
    if (!file_exists(path))
        return 0;
    if (json_parse_file(&catalogue->doc, path, NULL, err) != 0) {
        err->class = ERR_FATAL;
        return -1;
    }
    const struct json *models = json_get(json_root(catalogue->doc), "models");
    if (!models || models->type != JSON_OBJECT)
        return err_set(err, ERR_FORMAT, ERR_FATAL, "%s: expected {\"models\": {…}}", path);
    if (add_listed(catalogue, models, err) != 0)
        return -1;
    for (const struct json *entry = models->child; entry; entry = entry->next)
        if (read_entry(catalogue, entry, err) != 0)
            return -1;
    return 0;
}

/* ---- adapters ---- */

#define ADAPTERS_LISTED_MAX 512

/* FOLDER/NAME with one of the endings, a file of a known name in FOLDER/NAME, or that folder. */
static bool adapter_in(const char *folder, const char *name, char path[FILE_PATH_MAX_BYTES])
{
    static const char *const inner[] = {"pytorch_lora_weights.safetensors",
                                        "learned_embeds.safetensors", "pytorch_lora_weights.bin",
                                        "learned_embeds.bin", NULL};
    char file[300], below[FILE_PATH_MAX_BYTES];
    for (int i = 0; FILE_TENSOR_ENDINGS[i]; i++) {
        snprintf(file, sizeof(file), "%.255s%s", name, FILE_TENSOR_ENDINGS[i]);
        if (file_join(path, folder, file, NULL) == 0 && file_exists(path) && !file_is_dir(path))
            return true;
    }
    if (file_join(below, folder, name, NULL) != 0)
        return false;
    for (int i = 0; inner[i]; i++)
        if (file_join(path, below, inner[i], NULL) == 0 && file_exists(path))
            return true;
    if (file_join(path, below, "config.json", NULL) != 0 || !file_exists(path))
        return false;
    snprintf(path, FILE_PATH_MAX_BYTES, "%s", below); /* a ControlNet's folder is read whole */
    return true;
}

/* The names of a folder's adapters, up to `max`, each the caller's to free. */
static size_t adapter_names(const char *folder, char **names, size_t max)
{
    size_t count = 0;
    struct dirent *entry;
    DIR *dir = opendir(folder);
    while (dir && count < max && (entry = readdir(dir)) != NULL) {
        size_t stem = file_tensor_stem(entry->d_name);
        char *copy = strndup(entry->d_name, stem ? stem : strlen(entry->d_name));
        if (copy && *copy != '.')
            names[count++] = copy;
        else
            free(copy);
    }
    if (dir)
        closedir(dir);
    return count;
}

/* What would have been right, of the names in the adapters' own folder. */
static void adapter_hint(const char *folder, const char *name, char *hint)
{
    char *names[ADAPTERS_LISTED_MAX];
    size_t count = adapter_names(folder, names, ADAPTERS_LISTED_MAX);
    nearest_hint(hint, name, (const char *const *)names, count);
    for (size_t i = 0; i < count; i++)
        free(names[i]);
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static int list_words(struct catalogue *catalogue, struct err *err)
{
    char below[FILE_PATH_MAX_BYTES];
    catalogue->words = calloc(CATALOGUE_WORDS_MAX, sizeof(*catalogue->words));
    if (!catalogue->words)
        return err_set(err, ERR_MEMORY, ERR_FATAL, "out of memory to list %s", catalogue->dir);
    if (file_join(below, catalogue->dir, "embeddings", err) != 0)
        return -1;
    catalogue->word_count = adapter_names(below, catalogue->words, CATALOGUE_WORDS_MAX);
    qsort(catalogue->words, catalogue->word_count, sizeof(*catalogue->words), by_text);
    return 0;
}

int catalogue_open(struct catalogue *catalogue, const char *dir, struct err *err)
{
    *catalogue = (struct catalogue){0};
    if (strlen(dir) >= sizeof(catalogue->dir))
        return err_set(err, ERR_LIMIT, ERR_FATAL, "the models directory's path is too long");
    strcpy(catalogue->dir, dir);
    for (size_t len = strlen(dir); len > 1 && dir[len - 1] == '/'; len--)
        catalogue->dir[len - 1] = '\0'; /* so that messages show it as it was named */
    int rc = list(catalogue, err);
    if (rc == 0)
        rc = read_file(catalogue, err);
    if (rc == 0)
        rc = list_words(catalogue, err);
    if (rc == 0 && catalogue->count == 0)
        rc = err_set(err, ERR_NOT_FOUND, ERR_FATAL,
                     "%s holds no model: expected folders with a model_index.json, .safetensors or "
                     ".ckpt files (if it is a model itself, give the directory above it)",
                     dir);
    if (rc != 0)
        catalogue_release(catalogue);
    return rc;
}

void catalogue_release(struct catalogue *catalogue)
{
    for (size_t i = 0; i < catalogue->count; i++) {
        free(catalogue->models[i].name);
        free(catalogue->models[i].path);
    }
    for (size_t i = 0; i < catalogue->word_count; i++)
        free(catalogue->words[i]);
    free(catalogue->words);
    free(catalogue->models);
    json_doc_free(catalogue->doc);
    *catalogue = (struct catalogue){0};
}

int catalogue_find(const struct catalogue *catalogue, const char *name)
{
    struct catalogue_model key = {.name = (char *)name};
    if (catalogue->count == 0)
        return -1;
    const struct catalogue_model *found =
        bsearch(&key, catalogue->models, catalogue->count, sizeof(*catalogue->models), by_name);
    return found ? (int)(found - catalogue->models) : -1;
}

void catalogue_hint(const struct catalogue *catalogue, const char *name, char *out, size_t size)
{
    char hint[NEAREST_HINT_BYTES] = "";
    const char **names = calloc(catalogue->count + 1, sizeof(*names));
    *out = '\0';
    if (!names)
        return;
    for (size_t i = 0; i < catalogue->count; i++)
        names[i] = catalogue->models[i].name;
    nearest_hint(hint, name, names, catalogue->count);
    size_t used = (size_t)snprintf(out, size, "%s", hint);
    for (size_t i = 0; !*hint && i < catalogue->count && i < NAMES_SHOWN && used < size; i++)
        used +=
            (size_t)snprintf(out + used, size - used, "%s%s", i ? ", " : "; there are: ", names[i]);
    if (!*hint && catalogue->count > NAMES_SHOWN && used < size)
        snprintf(out + used, size - used, ", …");
    free(names);
}

int catalogue_adapter(const struct catalogue *catalogue, const char *folder, const char *name,
                      char path[FILE_PATH_MAX_BYTES], struct err *err)
{
    char below[FILE_PATH_MAX_BYTES], hint[NEAREST_HINT_BYTES];
    if (*name == '.' || strchr(name, '/'))
        return err_set(err, ERR_INVALID, ERR_REJECT,
                       "must be a file's name without its directory and without its ending");
    if (file_join(below, catalogue->dir, folder, err) != 0)
        return -1;
    if (adapter_in(below, name, path) || adapter_in(catalogue->dir, name, path))
        return 0;
    adapter_hint(below, name, hint);
    return err_set(err, ERR_NOT_FOUND, ERR_REJECT,
                   "there is no such file in %.160s or %.160s/%s%.200s", catalogue->dir,
                   catalogue->dir, folder, hint);
}

static bool is_part_of_word(char c)
{
    return c == '_' || c == '-' || (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') ||
           (c >= 'A' && c <= 'Z') || (unsigned char)c >= 0x80;
}

/* Whether `word` stands in the text with no letter beside it. */
static bool has_word(const char *text, const char *word)
{
    size_t len = strlen(word);
    for (const char *at = text; at && (at = strstr(at, word)) != NULL; at++)
        if ((at == text || !is_part_of_word(at[-1])) && !is_part_of_word(at[len]))
            return true;
    return false;
}

void catalogue_find_words(const struct catalogue *catalogue, struct job *job)
{
    if (job->embedding_count > 0)
        return;
    for (size_t i = 0; i < catalogue->word_count && job->embedding_count < JOB_EMBEDDINGS_MAX; i++)
        if (has_word(job->prompt, catalogue->words[i]) ||
            has_word(job->negative_prompt, catalogue->words[i]))
            job->embeddings[job->embedding_count++] = catalogue->words[i];
}

void catalogue_fill(const struct catalogue *catalogue, int number, struct job *job)
{
    const struct catalogue_model *model = &catalogue->models[number];
    if (!job->tier)
        job->tier = model->tier;
    if (job->width == 0 && !job->init_image)
        job->width = model->width;
    if (job->height == 0 && !job->init_image)
        job->height = model->height;
    if (job->steps == 0)
        job->steps = model->steps;
    if (job->guidance_scale < 0)
        job->guidance_scale = model->guidance_scale;
    /* A schedule goes with the sampler that it was chosen for: others may not have it. */
    bool goes = !job->sampler || (model->sampler && strcmp(job->sampler, model->sampler) == 0);
    if (!job->schedule && goes)
        job->schedule = model->schedule;
    if (!job->sampler)
        job->sampler = model->sampler;
    if (!job->negative_prompt)
        job->negative_prompt = model->negative_prompt;
}
