/*
 * file.h: whole files, read with a limit and written so that a name never shows half a file.
 *
 * A file is written under a temporary name in its own directory (FILE_TEMP_PREFIX, so that
 * leftovers of a killed process can be told and swept), flushed to the disk, given its final name,
 * and the directory flushed. Every function may be called from any thread.
 *
 *     buf_init(&text, 1 << 20);
 *     if (file_read(&text, "catalogue.json", &err) != 0) ...
 *     if (file_write(path, text.data, text.len, FILE_NEW, &err) != 0 && err.code == ERR_CONFLICT)
 * ...
 */
#ifndef ATELIER_COMMON_FILE_H
#define ATELIER_COMMON_FILE_H

#include "common/buf.h"
#include "common/err.h"

#include <stdbool.h>
#include <stddef.h>

#define FILE_TEMP_PREFIX ".tmp-"
#define FILE_PATH_MAX_BYTES 4096

/* Appends the file's bytes to `out`; over the buffer's maximum is ERR_LIMIT. Errors name the path.
 * ERR_NOT_FOUND (ERR_REJECT) where there is none. */
int file_read(struct buf *out, const char *path, struct err *err) must_check;

enum file_mode {
    FILE_NEW,     /* an existing file of that name stays and is ERR_CONFLICT */
    FILE_REPLACE, /* takes the place of an existing file in one step */
};

/* A disk that is full is ERR_LIMIT (ERR_FATAL) and leaves nothing behind. */
int file_write(const char *path, const void *bytes, size_t len, enum file_mode mode,
               struct err *err) must_check;

/* Makes one directory; one that exists already is fine. */
int file_make_dir(const char *path, struct err *err) must_check;

/* Flushes a directory, so that the names made in it last. */
int file_sync_dir(const char *path, struct err *err) must_check;

bool file_exists(const char *path);
bool file_is_dir(const char *path);

/* Joins with one '/'. -1 and ERR_LIMIT when it does not fit FILE_PATH_MAX_BYTES. */
int file_join(char out[FILE_PATH_MAX_BYTES], const char *dir, const char *name,
              struct err *err) must_check;

/* How files of tensors end, the best first, then NULL: ".safetensors", and ".ckpt", ".pt", ".pth"
 * and
 * ".bin", which torch.save writes. */
extern const char *const FILE_TENSOR_ENDINGS[];

/* The length of a file's name without such an ending, 0 where it has none. */
size_t file_tensor_stem(const char *name);

/* Finds what belongs to the program: `name` beside the executable, in one of the four directories
 * above it, or in the working directory. False when there is none. */
bool file_find(char out[FILE_PATH_MAX_BYTES], const char *name);

/* Fills in `err` for a failed system call on `path` from `error` (an errno): "what path: reason".
 */
int file_error(struct err *err, int error, const char *what, const char *path);

#endif
