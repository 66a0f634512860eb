#include "worker/store_s3.h"

#include "common/json.h"
#include "schema/manifest.h"

#include <stdio.h>
#include <string.h>

static int make_key(char out[S3_KEY_MAX_BYTES + 1], const char *folder, const char *id,
                    const char *name, struct err *err)
{
    int n = snprintf(out, S3_KEY_MAX_BYTES + 1, "%s/%s/%s", folder, id, name);
    return n > 0 && n <= S3_KEY_MAX_BYTES
               ? 0
               : err_set(err, ERR_LIMIT, ERR_REJECT, "the key of %.100s is too long", id);
}

static const char *type_of(const char *name)
{
    static const char *const types[][2] = {{".png", "image/png"},
                                           {".jpg", "image/jpeg"},
                                           {".webp", "image/webp"},
                                           {".json", "application/json"}};
    const char *dot = strrchr(name, '.');
    for (size_t i = 0; dot && i < sizeof(types) / sizeof(types[0]); i++)
        if (strcmp(dot, types[i][0]) == 0)
            return types[i][1];
    return "application/octet-stream";
}

static int put(struct s3 *s3, const char *folder, const char *id, const char *name,
               const void *bytes, size_t len, enum s3_put_mode mode, struct err *err)
{
    char key[S3_KEY_MAX_BYTES + 1];
    if (make_key(key, folder, id, name, err) != 0)
        return -1;
    return s3_put(s3, key, bytes, len, mode, type_of(name), err);
}

static int get(struct s3 *s3, const char *folder, const char *id, const char *name, struct buf *out,
               struct err *err)
{
    char key[S3_KEY_MAX_BYTES + 1];
    if (make_key(key, folder, id, name, err) != 0)
        return -1;
    return s3_get(s3, (struct s3_object){NULL, key}, out, err);
}

static int is_done(void *s3, const char *id, bool *done, struct err *err)
{
    char key[S3_KEY_MAX_BYTES + 1];
    struct s3_head head;
    if (make_key(key, "results", id, MANIFEST_NAME, err) != 0 ||
        s3_head(s3, (struct s3_object){NULL, key}, &head, err) != 0)
        return -1;
    *done = head.exists;
    return 0;
}

static int manifest(void *s3, const char *id, struct buf *out, struct err *err)
{
    return get(s3, "results", id, MANIFEST_NAME, out, err);
}

static int begin(void *s3, const char *id, struct err *err)
{
    (void)s3;
    (void)id;
    (void)err;
    return 0;
}

static int put_result(void *s3, const char *id, const char *name, const void *bytes, size_t len,
                      struct err *err)
{
    return put(s3, "results", id, name, bytes, len, S3_NEW, err);
}

static int finish(void *s3, const char *id, const void *bytes, size_t len, struct err *err)
{
    return put(s3, "results", id, MANIFEST_NAME, bytes, len, S3_NEW, err);
}

/* ---- sweeping ---- */

struct sweeping {
    struct s3 *s3;
    const struct manifest_view *view;
};

static bool is_named(const struct manifest_view *view, const char *name)
{
    if (strcmp(name, MANIFEST_NAME) == 0)
        return true;
    for (const struct json *file = view->files->child; file; file = file->next)
        if (strcmp(name, json_string_or(json_get(file, "name"), "")) == 0)
            return true;
    return false;
}

static int sweep_object(void *user, const struct s3_listed *object, struct err *err)
{
    const struct sweeping *sweeping = user;
    if (is_named(sweeping->view, strrchr(object->key, '/') + 1))
        return 0;
    return s3_delete(sweeping->s3, object->key, err);
}

static int sweep(void *s3, const char *id, struct err *err)
{
    char prefix[S3_KEY_MAX_BYTES + 1];
    struct manifest_view view = {0};
    struct buf text;
    bool done = false;
    if (is_done(s3, id, &done, err) != 0)
        return -1;
    if (!done)
        return 0;
    buf_init(&text, MANIFEST_MAX_BYTES);
    int rc = manifest(s3, id, &text, err);
    if (rc == 0)
        rc = manifest_read(&view, text.data, text.len, err);
    if (rc == 0)
        rc = make_key(prefix, "results", id, "", err);
    if (rc == 0) {
        struct sweeping sweeping = {s3, &view};
        rc = s3_list(s3, prefix, sweep_object, &sweeping, err);
    }
    manifest_view_release(&view);
    buf_release(&text);
    return rc;
}

/* ---- checkpoints ---- */

static int put_blob(void *s3, const char *id, const char *name, const void *bytes, size_t len,
                    struct err *err)
{
    return put(s3, "checkpoints", id, name, bytes, len, S3_REPLACE, err);
}

static int get_blob(void *s3, const char *id, const char *name, struct buf *out, struct err *err)
{
    return get(s3, "checkpoints", id, name, out, err);
}

static int remove_blob(void *s3, const char *id, const char *name, struct err *err)
{
    char key[S3_KEY_MAX_BYTES + 1];
    if (make_key(key, "checkpoints", id, name, err) != 0)
        return -1;
    return s3_delete(s3, key, err);
}

static int remove_object(void *s3, const struct s3_listed *object, struct err *err)
{
    return s3_delete(s3, object->key, err);
}

static int remove_all(struct s3 *s3, const char *folder, const char *id, struct err *err)
{
    char prefix[S3_KEY_MAX_BYTES + 1];
    if (make_key(prefix, folder, id, "", err) != 0)
        return -1;
    return s3_list(s3, prefix, remove_object, s3, err);
}

static int clear(void *s3, const char *id, struct err *err)
{
    bool done = false;
    if (remove_all(s3, "checkpoints", id, err) != 0 || is_done(s3, id, &done, err) != 0)
        return -1;
    return done ? sweep(s3, id, err) : remove_all(s3, "results", id, err);
}

struct store store_s3(struct s3 *s3)
{
    static const struct store_ops ops = {is_done, manifest, begin,    put_result,  finish,
                                         sweep,   put_blob, get_blob, remove_blob, clear};
    return (struct store){&ops, s3};
}
