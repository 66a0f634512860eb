#include "worker/cache.h"

#include "common/sha256.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define PART_PREFIX ".part-"
#define LOCK_NAME ".lock"
#define SAFETENSORS ".safetensors"
#define DEPTH_FDS 8
#define DIGITS 16 /* at the end of a model's directory: of its source and hash */

/* ---- sizes and removing ---- */

/* nftw has no user argument: one thread at a time walks, under the directory's lock. */
static _Thread_local uint64_t walked_bytes;

static int add_size(const char *path, const struct stat *status, int type, struct FTW *where)
{
    (void)path;
    (void)where;
    if (type == FTW_F)
        walked_bytes += (uint64_t)status->st_size;
    return 0;
}

static int remove_one(const char *path, const struct stat *status, int type, struct FTW *where)
{
    (void)status;
    (void)type;
    (void)where;
    return remove(path);
}

static uint64_t size_of(const char *dir)
{
    walked_bytes = 0;
    (void)nftw(dir, add_size, DEPTH_FDS, FTW_PHYS);
    return walked_bytes;
}

static void remove_tree(const char *dir)
{
    (void)nftw(dir, remove_one, DEPTH_FDS, FTW_PHYS | FTW_DEPTH);
}

int cache_open(struct cache *cache, const struct cache_options *options, struct err *err)
{
    cache->options = *options;
    if (options->dir && file_make_dir(options->dir, err) != 0) {
        err->class = ERR_FATAL;
        return err_prefix(err, "cache");
    }
    atomic_store(&cache->bytes, options->dir ? size_of(options->dir) : 0);
    return 0;
}

uint64_t cache_bytes(const struct cache *cache)
{
    return atomic_load(&cache->bytes);
}

/* Whether the cache has named it: what else lies in its directory is not the cache's to remove. */
static bool is_model(const char *name)
{
    size_t len = strlen(name);
    return len > DIGITS + 1 && name[len - DIGITS - 1] == '-' &&
           strspn(name + len - DIGITS, "0123456789abcdef") == DIGITS;
}

/* The folder that was used longest ago, but `kept`; false when there is none. */
static bool find_oldest(const struct cache *cache, const char *kept,
                        char oldest[FILE_PATH_MAX_BYTES])
{
    char path[FILE_PATH_MAX_BYTES];
    struct timespec least = {0};
    struct dirent *entry;
    struct stat status;
    struct err err;
    bool found = false;
    DIR *dir = opendir(cache->options.dir);
    while (dir && (entry = readdir(dir)) != NULL) {
        if (!is_model(entry->d_name) ||
            file_join(path, cache->options.dir, entry->d_name, &err) != 0 ||
            strcmp(path, kept) == 0 || stat(path, &status) != 0 || !S_ISDIR(status.st_mode))
            continue;
        if (!found || status.st_mtim.tv_sec < least.tv_sec ||
            (status.st_mtim.tv_sec == least.tv_sec && status.st_mtim.tv_nsec < least.tv_nsec)) {
            found = true;
            least = status.st_mtim;
            strcpy(oldest, path);
        }
    }
    if (dir)
        closedir(dir);
    return found;
}

static void make_room(struct cache *cache, const char *kept, uint64_t wanted)
{
    char oldest[FILE_PATH_MAX_BYTES];
    uint64_t bytes;
    while ((bytes = size_of(cache->options.dir)) + wanted > cache->options.max_bytes &&
           find_oldest(cache, kept, oldest)) {
        log_event(cache->options.log, LOG_INFO, "model_evicted", "path", oldest, NULL);
        remove_tree(oldest);
    }
    atomic_store(&cache->bytes, bytes);
}

/* ---- fetching ---- */

struct folder {
    struct cache *cache;
    struct s3 *s3;
    const char *prefix;
    const char *to;
};

/* Makes the folders above `path`. */
static int make_parents(char *path, size_t from, struct err *err)
{
    for (char *slash = strchr(path + from, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        int rc = file_make_dir(path, err);
        *slash = '/';
        if (rc != 0)
            return -1;
    }
    return 0;
}

static int fetch_object(void *user, const struct s3_listed *object, struct err *err)
{
    const struct folder *folder = user;
    const char *name = object->key + strlen(folder->prefix);
    char path[FILE_PATH_MAX_BYTES];
    struct stat status;
    if (name[0] == '\0' || name[strlen(name) - 1] == '/')
        return 0;
    if (strstr(name, "..") || name[0] == '/')
        return err_set(err, ERR_INVALID, ERR_RETRY, "the key %.200s is no place in a folder",
                       object->key);
    if (file_join(path, folder->to, name, err) != 0 ||
        make_parents(path, strlen(folder->to) + 1, err) != 0)
        return -1;
    /* Of an earlier go, whole: downloads come into sight by a rename. */
    if (stat(path, &status) == 0 && (uint64_t)status.st_size == object->bytes)
        return 0;
    return s3_get_file(folder->s3, (struct s3_object){NULL, object->key}, path, NULL, 0, err);
}

/* s3://bucket/prefix/ */
static int fetch_folder(struct cache *cache, const char *source, const char *to, struct err *err)
{
    char bucket[256];
    const char *rest = source + strlen("s3://"), *slash = strchr(rest, '/');
    struct s3_options options = cache->options.s3;
    struct folder folder = {.cache = cache, .prefix = slash + 1, .to = to};
    if ((size_t)(slash - rest) >= sizeof(bucket))
        return err_set(err, ERR_INVALID, ERR_RETRY, "%s: the bucket's name is too long", source);
    memcpy(bucket, rest, (size_t)(slash - rest));
    bucket[slash - rest] = '\0';
    options.bucket = bucket;
    options.prefix = "";
    if (s3_create(&folder.s3, &options, err) != 0)
        return -1;
    int rc = s3_list(folder.s3, folder.prefix, fetch_object, &folder, err);
    s3_free(folder.s3);
    return rc;
}

static bool is_folder(const char *source)
{
    const char *slash = strncmp(source, "s3://", 5) == 0 ? strchr(source + 5, '/') : NULL;
    return slash && source[strlen(source) - 1] == '/';
}

static int fetch_into(struct cache *cache, const struct catalogue_model *model, const char *part,
                      struct err *err)
{
    char path[FILE_PATH_MAX_BYTES], name[256];
    if (file_make_dir(part, err) != 0)
        return -1;
    if (is_folder(model->source))
        return fetch_folder(cache, model->source, part, err);
    snprintf(name, sizeof(name), "%.200s" SAFETENSORS, model->name);
    if (file_join(path, part, name, err) != 0)
        return -1;
    return fetch_file(cache->options.fetch, model->source, path, model->sha256, 0, err);
}

/* ---- places ---- */

static int name_place(const struct cache *cache, const struct catalogue_model *model,
                      const char *prefix, char out[FILE_PATH_MAX_BYTES], struct err *err)
{
    char text[1024], name[320];
    snprintf(text, sizeof(text), "%.800s %s", model->source, model->sha256 ? model->sha256 : "");
    snprintf(name, sizeof(name), "%s%.200s-%016" PRIx64, prefix, model->name,
             sha256_u64(text, strlen(text)));
    return file_join(out, cache->options.dir, name, err);
}

/* The model within its place: the one file, or the folder itself. */
static int enter(const struct catalogue_model *model, const char *place,
                 char path[FILE_PATH_MAX_BYTES], struct err *err)
{
    char name[256];
    (void)utimensat(AT_FDCWD, place, NULL, 0);
    if (is_folder(model->source)) {
        strcpy(path, place);
        return 0;
    }
    snprintf(name, sizeof(name), "%.200s" SAFETENSORS, model->name);
    return file_join(path, place, name, err);
}

static int fetch_model(struct cache *cache, const struct catalogue_model *model, const char *place,
                       struct err *err)
{
    char part[FILE_PATH_MAX_BYTES];
    if (name_place(cache, model, PART_PREFIX, part, err) != 0)
        return -1;
    log_event(cache->options.log, LOG_INFO, "model_fetching", "model", model->name, NULL);
    make_room(cache, part, model->bytes);
    if (fetch_into(cache, model, part, err) != 0)
        return -1;
    make_room(cache, part, 0);
    if (rename(part, place) != 0)
        return file_error(err, errno, "rename", part);
    log_event(cache->options.log, LOG_INFO, "model_fetched", "model", model->name, NULL);
    return file_sync_dir(cache->options.dir, err);
}

static int locate(struct cache *cache, const struct catalogue_model *model,
                  char path[FILE_PATH_MAX_BYTES], struct err *err)
{
    char place[FILE_PATH_MAX_BYTES], lock_path[FILE_PATH_MAX_BYTES];
    if (strncmp(model->source, "file://", 7) == 0) {
        if (snprintf(path, FILE_PATH_MAX_BYTES, "%s", model->source + 7) < FILE_PATH_MAX_BYTES)
            return 0;
        return err_set(err, ERR_LIMIT, ERR_RETRY, "its source's path is too long");
    }
    if (!cache->options.dir)
        return err_set(err, ERR_NOT_FOUND, ERR_RETRY,
                       "it would be fetched, but this worker has no cache; give it --cache DIR");
    if (name_place(cache, model, "", place, err) != 0 ||
        file_join(lock_path, cache->options.dir, LOCK_NAME, err) != 0)
        return -1;
    int lock = open(lock_path, O_CREAT | O_RDWR | O_CLOEXEC, 0644), rc = 0;
    if (lock < 0 || flock(lock, LOCK_EX) != 0)
        rc = file_error(err, errno, "lock", lock_path);
    if (rc == 0 && !file_is_dir(place))
        rc = fetch_model(cache, model, place, err);
    if (rc == 0)
        rc = enter(model, place, path, err);
    if (lock >= 0)
        close(lock);
    return rc;
}

int cache_locate(struct cache *cache, const struct catalogue_model *model,
                 char path[FILE_PATH_MAX_BYTES], struct err *err)
{
    if (locate(cache, model, path, err) == 0)
        return 0;
    err->class = ERR_RETRY;
    return err_prefix(err, "model %s", model->name);
}
