#include "worker/store_dir.h"

#include "schema/manifest.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

static int lock(struct store_dir *store, struct err *err)
{
    char path[FILE_PATH_MAX_BYTES];
    if (file_join(path, store->root, ".lock", err) != 0)
        return -1;
    store->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (store->lock_fd < 0)
        return file_error(err, errno, "write in", store->root);
    if (flock(store->lock_fd, LOCK_EX | LOCK_NB) == 0)
        return 0;
    if (errno == EWOULDBLOCK)
        return err_set(err, ERR_CONFLICT, ERR_FATAL,
                       "%s is in use by another run; wait for it or choose another directory",
                       store->root);
    return file_error(err, errno, "lock", path);
}

int store_dir_open(struct store_dir *store, const char *root, struct err *err)
{
    struct stat status;
    *store = (struct store_dir){.lock_fd = -1};
    if (stat(root, &status) == 0 && !S_ISDIR(status.st_mode))
        return err_set(err, ERR_CONFLICT, ERR_FATAL,
                       "%s is a file; the out directory must be a directory or not exist yet",
                       root);
    if (file_make_dir(root, err) != 0 || file_join(store->root, root, "", err) != 0 ||
        file_join(store->results, root, "results", err) != 0)
        return -1;
    size_t len = strlen(store->root);
    if (len > 1)
        store->root[len - 1] = '\0';
    if (lock(store, err) == 0 && file_make_dir(store->results, err) == 0)
        return 0;
    store_dir_close(store);
    return -1;
}

void store_dir_close(struct store_dir *store)
{
    if (store->lock_fd >= 0)
        close(store->lock_fd);
    store->lock_fd = -1;
}

/* ---- results ---- */

/* results/<id>/<name>; an empty name gives the folder. */
static int object_path(const struct store_dir *store, const char *id, const char *name,
                       char out[FILE_PATH_MAX_BYTES], struct err *err)
{
    int n =
        snprintf(out, FILE_PATH_MAX_BYTES, "%s/%s%s%s", store->results, id, *name ? "/" : "", name);
    if (n < 0 || n >= FILE_PATH_MAX_BYTES)
        return err_set(err, ERR_LIMIT, ERR_FATAL, "the path of %s in %s is too long", id,
                       store->root);
    return 0;
}

static bool has_manifest(const struct store_dir *store, const char *id)
{
    char path[FILE_PATH_MAX_BYTES];
    return object_path(store, id, MANIFEST_NAME, path, NULL) == 0 && file_exists(path);
}

static int is_done(void *store, const char *id, bool *done, struct err *err)
{
    (void)err;
    *done = has_manifest(store, id);
    return 0;
}

static int manifest(void *store, const char *id, struct buf *out, struct err *err)
{
    char path[FILE_PATH_MAX_BYTES];
    if (object_path(store, id, MANIFEST_NAME, path, err) != 0)
        return -1;
    return file_read(out, path, err);
}

static void empty_dir(const char *path, const char *only_prefix)
{
    DIR *dir = opendir(path);
    struct dirent *entry;
    if (!dir)
        return;
    while ((entry = readdir(dir)) != NULL)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0 &&
            strncmp(entry->d_name, only_prefix, strlen(only_prefix)) == 0)
            unlinkat(dirfd(dir), entry->d_name, 0);
    closedir(dir);
}

static int begin(void *context, const char *id, struct err *err)
{
    const struct store_dir *store = context;
    char path[FILE_PATH_MAX_BYTES];
    if (object_path(store, id, "", path, err) != 0)
        return -1;
    if (mkdir(path, 0777) == 0)
        return file_sync_dir(store->results, err);
    if (errno != EEXIST)
        return file_error(err, errno, "make the directory", path);
    if (!has_manifest(store, id))
        empty_dir(path, "");
    return 0;
}

static int put(void *store, const char *id, const char *name, const void *bytes, size_t len,
               struct err *err)
{
    char path[FILE_PATH_MAX_BYTES];
    struct err own;
    if (object_path(store, id, name, path, err) != 0)
        return -1;
    if (file_write(path, bytes, len, FILE_NEW, &own) == 0 || own.code == ERR_CONFLICT)
        return 0;
    return err_set(err, own.code, own.class, "%s", own.message);
}

static int finish(void *store, const char *id, const void *bytes, size_t len, struct err *err)
{
    char path[FILE_PATH_MAX_BYTES];
    if (object_path(store, id, MANIFEST_NAME, path, err) != 0)
        return -1;
    return file_write(path, bytes, len, FILE_NEW, err);
}

static int sweep(void *store, const char *id, struct err *err)
{
    char path[FILE_PATH_MAX_BYTES];
    if (object_path(store, id, "", path, err) != 0)
        return -1;
    if (has_manifest(store, id)) {
        empty_dir(path, FILE_TEMP_PREFIX);
        return 0;
    }
    empty_dir(path, "");
    rmdir(path);
    return 0;
}

void store_dir_sweep_root(const struct store_dir *store)
{
    empty_dir(store->root, FILE_TEMP_PREFIX);
}

/* ---- checkpoints ---- */

/* checkpoints/<id>/<name>; an empty name gives the folder, an empty id that of all. */
static int blob_path(const struct store_dir *store, const char *id, const char *name,
                     char out[FILE_PATH_MAX_BYTES], struct err *err)
{
    int n = snprintf(out, FILE_PATH_MAX_BYTES, "%s/checkpoints%s%s%s%s", store->root,
                     *id ? "/" : "", id, *name ? "/" : "", name);
    if (n < 0 || n >= FILE_PATH_MAX_BYTES)
        return err_set(err, ERR_LIMIT, ERR_FATAL, "the path of %s in %s is too long", id,
                       store->root);
    return 0;
}

static int put_blob(void *store, const char *id, const char *name, const void *bytes, size_t len,
                    struct err *err)
{
    char all[FILE_PATH_MAX_BYTES], folder[FILE_PATH_MAX_BYTES], path[FILE_PATH_MAX_BYTES];
    if (blob_path(store, "", "", all, err) != 0 || blob_path(store, id, "", folder, err) != 0 ||
        blob_path(store, id, name, path, err) != 0 || file_make_dir(all, err) != 0 ||
        file_make_dir(folder, err) != 0)
        return -1;
    return file_write(path, bytes, len, FILE_REPLACE, err);
}

static int get_blob(void *store, const char *id, const char *name, struct buf *out, struct err *err)
{
    char path[FILE_PATH_MAX_BYTES];
    return blob_path(store, id, name, path, err) != 0 ? -1 : file_read(out, path, err);
}

static int remove_blob(void *store, const char *id, const char *name, struct err *err)
{
    char folder[FILE_PATH_MAX_BYTES], path[FILE_PATH_MAX_BYTES];
    if (blob_path(store, id, "", folder, err) != 0 || blob_path(store, id, name, path, err) != 0)
        return -1;
    if (unlink(path) != 0 && errno != ENOENT && errno != ENOTDIR)
        return file_error(err, errno, "remove", path);
    rmdir(folder); /* if it was the last */
    return 0;
}

static int clear(void *store, const char *id, struct err *err)
{
    char folder[FILE_PATH_MAX_BYTES];
    if (blob_path(store, id, "", folder, err) != 0)
        return -1;
    empty_dir(folder, "");
    rmdir(folder);
    return sweep(store, id, err);
}

struct store store_dir_store(struct store_dir *store)
{
    static const struct store_ops ops = {is_done, manifest, begin,    put,         finish,
                                         sweep,   put_blob, get_blob, remove_blob, clear};
    return (struct store){&ops, store};
}
