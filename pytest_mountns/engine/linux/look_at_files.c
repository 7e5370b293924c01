/* Looks at files by stat(2), several at once.
 *
 * Python makes an object of 20 attributes for each of them, of which five are used.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>

/* As in shown_files.py. */
enum { MODEL, SOURCE, DIRECTORY, IF_THERE };
#define VALUES 7

struct attribute {
    const char *name;
    const void *value;
    int64_t size;
};

struct look {
    const char *path;
    int64_t kind;
    /* Those that a model is expected to have, without those of OverlayFS. */
    const struct attribute *attributes;
    int64_t count;
};

/* They wrap around in the year 2262, where they are only compared. */
static int64_t nanoseconds(struct timespec time)
{
    return (int64_t)((uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec);
}

static int is_far(struct timespec time)
{
    return time.tv_sec >= 9000000000 || time.tv_sec < -9000000000;
}

static int is_of_overlay(const char *name)
{
    static const char *const own[] = {"trusted.overlay.", "user.overlay."};

    return !strncmp(name, own[0], strlen(own[0])) || !strncmp(name, own[1], strlen(own[1]));
}

/* Whether a file has just the extended attributes that are expected. One that cannot be read counts
 * as none. */
static int has_expected(const struct look *look)
{
    char names[4096], value[4096];
    ssize_t length = listxattr(look->path, names, sizeof names);
    int64_t found = 0;

    if (length < 0)
        return errno != ERANGE && !look->count;
    for (ssize_t at = 0; at < length; at += (ssize_t)strlen(names + at) + 1) {
        const struct attribute *one = look->attributes, *end = one + look->count;
        ssize_t size;

        if (is_of_overlay(names + at))
            continue;
        size = getxattr(look->path, names + at, value, sizeof value);
        if (size < 0 && errno != ERANGE)
            continue;
        while (one < end && strcmp(one->name, names + at))
            one++;
        if (one == end || size != one->size || memcmp(value, one->value, (size_t)size))
            return 0;
        found++;
    }
    return found == look->count;
}

/* Write what matters of each file to `found`. Paths are relative to the directory `top`, but those of
 * models, which are absolute. Returns 0, 1 if a model has other extended attributes
 * than are expected or times beyond the year 2255, or a negative errno. */
int mountns_look_at(int top, const struct look *looks, int count, int64_t (*found)[VALUES])
{
    memset(found, 0, sizeof *found * (size_t)count);
    for (int i = 0; i < count; i++, found++) {
        int64_t *value = *found;
        struct stat status;

        if (fstatat(top, looks[i].path, &status, 0)) {
            if (looks[i].kind == IF_THERE)
                continue;
            return -errno;
        }
        if (looks[i].kind != MODEL) {
            *value++ = (int64_t)status.st_dev;
            *value++ = (int64_t)status.st_ino;
        }
        if (looks[i].kind == SOURCE)
            continue;
        *value++ = looks[i].kind == MODEL ? status.st_mode & 07777 : status.st_mode;
        *value++ = status.st_uid;
        *value++ = status.st_gid;
        if (looks[i].kind == MODEL)
            *value++ = nanoseconds(status.st_atim);
        *value++ = nanoseconds(status.st_mtim);
        if (looks[i].kind != MODEL)
            *value++ = nanoseconds(status.st_ctim);
        else if (is_far(status.st_atim) || is_far(status.st_mtim)
                 || !has_expected(&looks[i]))
            return 1;
    }
    return 0;
}
