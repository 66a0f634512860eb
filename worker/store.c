#include "worker/store.h"

int store_is_done(const struct store *store, const char *id, bool *done, struct err *err)
{
    return store->ops->is_done(store->context, id, done, err);
}

int store_manifest(const struct store *store, const char *id, struct buf *out, struct err *err)
{
    return store->ops->manifest(store->context, id, out, err);
}

int store_begin(const struct store *store, const char *id, struct err *err)
{
    return store->ops->begin(store->context, id, err);
}

int store_put(const struct store *store, const char *id, const char *name, const void *bytes,
              size_t len, struct err *err)
{
    return store->ops->put(store->context, id, name, bytes, len, err);
}

int store_finish(const struct store *store, const char *id, const void *bytes, size_t len,
                 struct err *err)
{
    return store->ops->finish(store->context, id, bytes, len, err);
}

int store_sweep(const struct store *store, const char *id, struct err *err)
{
    return store->ops->sweep(store->context, id, err);
}

int store_put_blob(const struct store *store, const char *id, const char *name, const void *bytes,
                   size_t len, struct err *err)
{
    return store->ops->put_blob(store->context, id, name, bytes, len, err);
}

int store_get_blob(const struct store *store, const char *id, const char *name, struct buf *out,
                   struct err *err)
{
    return store->ops->get_blob(store->context, id, name, out, err);
}

int store_remove_blob(const struct store *store, const char *id, const char *name, struct err *err)
{
    return store->ops->remove_blob(store->context, id, name, err);
}

int store_clear(const struct store *store, const char *id, struct err *err)
{
    return store->ops->clear(store->context, id, err);
}
