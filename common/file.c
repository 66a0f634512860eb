#include "common/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define READ_STEP_BYTES (64u << 10)
#define LEVELS_UP 4 /* above the executable */

int file_error(struct err *err, int error, const char *what, const char *path)
{
    enum err_code code = ERR_IO;
    enum err_class class = ERR_FATAL;
    const char *remedy = "";
    switch (error) {
    case ENOENT:
    case ENOTDIR:
        code = ERR_NOT_FOUND;
        class = ERR_REJECT;
        break;
    case EEXIST:
        code = ERR_CONFLICT;
        class = ERR_REJECT;
        break;
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
        code = ERR_LIMIT;
        remedy = "; free some space and run again";
        break;
    case ENOMEM:
        code = ERR_MEMORY;
        class = ERR_RETRY;
        break;
    case EACCES:
    case EPERM:
    case EROFS:
        remedy = "; give write permission or choose another place";
        break;
    default:
        break;
    }
    if (strncmp(what, "read", 4) == 0 || strncmp(what, "open", 4) == 0)
        remedy = "";
    char reason[128];
    return err_set(err, code, class, "cannot %s %s: %s%s", what, path,
                   strerror_r(error, reason, sizeof(reason)), remedy);
}

int file_read(struct buf *out, const char *path, struct err *err)
{
    int rc = -1;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return file_error(err, errno, "open", path);
    for (;;) {
        size_t before = out->len;
        size_t room = out->max_bytes - before < READ_STEP_BYTES ? out->max_bytes - before + 1
                                                                : READ_STEP_BYTES;
        char step[READ_STEP_BYTES];
        ssize_t n = read(fd, step, room < sizeof(step) ? room : sizeof(step));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            file_error(err, errno, "read", path);
            goto out;
        }
        if (n == 0)
            break;
        bool over = (size_t)n > out->max_bytes - before;
        buf_append(out, step, (size_t)n);
        if (out->failed) {
            if (over)
                err_set(err, ERR_LIMIT, ERR_REJECT, "%s is larger than %zu bytes", path,
                        out->max_bytes);
            else
                err_set(err, ERR_MEMORY, ERR_RETRY, "out of memory to read %s", path);
            goto out;
        }
    }
    rc = 0;
out:
    close(fd);
    return rc;
}

static int write_all(int fd, const char *bytes, size_t len)
{
    while (len > 0) {
        ssize_t n = write(fd, bytes, len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -1;
        bytes += n;
        len -= (size_t)n;
    }
    return 0;
}

/* The directory part of a path, "." when it has none. */
static int dir_of(char out[FILE_PATH_MAX_BYTES], const char *path, struct err *err)
{
    const char *slash = strrchr(path, '/');
    size_t len = slash ? (size_t)(slash - path) : 0;
    if (len >= FILE_PATH_MAX_BYTES)
        return err_set(err, ERR_LIMIT, ERR_REJECT, "a path of %zu bytes is too long", len);
    if (!slash)
        return snprintf(out, FILE_PATH_MAX_BYTES, ".") > 0 ? 0 : -1;
    if (len == 0)
        len = 1;
    memcpy(out, path, len);
    out[len] = '\0';
    return 0;
}

/* Gives a flushed temporary file its name, only if nobody has it. link() refuses an existing name
 * on every file system; those without hard links get the newer call. */
static int name_new(const char *temp, const char *path)
{
    if (link(temp, path) == 0) {
        unlink(temp);
        return 0;
    }
    if (errno != EPERM && errno != EOPNOTSUPP && errno != EMLINK)
        return -1;
    return renameat2(AT_FDCWD, temp, AT_FDCWD, path, RENAME_NOREPLACE);
}

int file_write(const char *path, const void *bytes, size_t len, enum file_mode mode,
               struct err *err)
{
    static atomic_uint serial;
    char dir[FILE_PATH_MAX_BYTES], name[64], temp[FILE_PATH_MAX_BYTES];
    if (dir_of(dir, path, err) != 0)
        return -1;
    snprintf(name, sizeof(name), FILE_TEMP_PREFIX "%d-%u", (int)getpid(),
             atomic_fetch_add(&serial, 1));
    if (file_join(temp, dir, name, err) != 0)
        return -1;
    int fd = open(temp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd < 0)
        return file_error(err, errno, "create a file in", dir);
    int error = 0;
    if (write_all(fd, bytes, len) != 0 || fsync(fd) != 0)
        error = errno;
    if (close(fd) != 0 && error == 0)
        error = errno;
    if (error == 0) {
        int named = mode == FILE_NEW ? name_new(temp, path) : rename(temp, path);
        error = named == 0 ? 0 : errno;
    }
    if (error != 0) {
        unlink(temp);
        return file_error(err, error, "write", path);
    }
    return file_sync_dir(dir, err);
}

int file_make_dir(const char *path, struct err *err)
{
    if (mkdir(path, 0777) == 0)
        return 0;
    if (errno == EEXIST && file_is_dir(path))
        return 0;
    return file_error(err, errno, "make the directory", path);
}

int file_sync_dir(const char *path, struct err *err)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return file_error(err, errno, "open", path);
    int error = fsync(fd) == 0 || errno == EINVAL ? 0 : errno;
    close(fd);
    return error == 0 ? 0 : file_error(err, error, "flush", path);
}

bool file_exists(const char *path)
{
    return access(path, F_OK) == 0;
}

bool file_is_dir(const char *path)
{
    struct stat status;
    return stat(path, &status) == 0 && S_ISDIR(status.st_mode);
}

int file_join(char out[FILE_PATH_MAX_BYTES], const char *dir, const char *name, struct err *err)
{
    size_t len = strlen(dir);
    const char *slash = len == 0 || dir[len - 1] == '/' ? "" : "/";
    int n = snprintf(out, FILE_PATH_MAX_BYTES, "%s%s%s", dir, slash, name);
    if (n < 0 || n >= FILE_PATH_MAX_BYTES)
        return err_set(err, ERR_LIMIT, ERR_REJECT, "the path %.60s…/%.60s is too long", dir, name);
    return 0;
}

const char *const FILE_TENSOR_ENDINGS[] = {".safetensors", ".ckpt", ".pt", ".pth", ".bin", NULL};

size_t file_tensor_stem(const char *name)
{
    size_t len = strlen(name);

    for (int i = 0; FILE_TENSOR_ENDINGS[i]; i++) {
        size_t tail = strlen(FILE_TENSOR_ENDINGS[i]);
        if (len > tail && strcmp(name + len - tail, FILE_TENSOR_ENDINGS[i]) == 0)
            return len - tail;
    }
    return 0;
}

bool file_find(char out[FILE_PATH_MAX_BYTES], const char *name)
{
    char here[FILE_PATH_MAX_BYTES];
    struct err err;
    ssize_t len = readlink("/proc/self/exe", here, sizeof(here) - 1);
    here[len > 0 ? len : 0] = '\0';
    for (int i = 0; i <= LEVELS_UP; i++) {
        char *slash = strrchr(here, '/');
        if (!slash)
            break;
        *slash = '\0';
        if (file_join(out, here, name, &err) == 0 && file_exists(out))
            return true;
    }
    return file_join(out, ".", name, &err) == 0 && file_exists(out);
}
