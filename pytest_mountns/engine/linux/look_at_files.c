/* Looks at files by stat(2), several at once.
 *
 * Python makes an object of 20 attributes for each of them, of which five are used.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>

/* As in shown_files.py. */
enum { MODEL, SOURCE, DIRECTORY };
#define VALUES 7

struct look {
    const char *path;
    int64_t kind;
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

/* Whether a file has other extended attributes than those of OverlayFS. */
static int has_attributes(const char *path)
{
    static const char *const own[] = {"trusted.overlay.", "user.overlay."};
    char names[512];
    ssize_t size = listxattr(path, names, sizeof names);

    if (size < 0)
        return errno == ERANGE;
    for (ssize_t at = 0; at < size; at += (ssize_t)strlen(names + at) + 1) {
        const char *name = names + at;

        if (strncmp(name, own[0], strlen(own[0])) && strncmp(name, own[1], strlen(own[1])))
            return 1;
    }
    return 0;
}

/* Write what matters of each file to `found`. Returns 0, 1 if a model has extended attributes or
 * times beyond the year 2255, or a negative errno. */
int mountns_look_at_files(const struct look *looks, int count, int64_t (*found)[VALUES])
{
    memset(found, 0, sizeof *found * (size_t)count);
    for (int i = 0; i < count; i++, found++) {
        int64_t *value = *found;
        struct stat status;

        if (stat(looks[i].path, &status))
            return -errno;
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
        if (looks[i].kind == DIRECTORY)
            *value++ = nanoseconds(status.st_ctim);
        else if (is_far(status.st_atim) || is_far(status.st_mtim)
                 || has_attributes(looks[i].path))
            return 1;
    }
    return 0;
}
