/* Finds the open directories of this process.
 *
 * Python makes a string and an object of the result of fstat(2) for each descriptor, and in a
 * process that was just forked, each page of memory that it writes to costs a page fault.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* As getdents64(2) writes them. */
struct entry {
    uint64_t inode;
    int64_t next;
    unsigned short length;
    unsigned char type;
    char name[];
};

/* Note `fd` in `found` if it is a directory. Returns an errno: EBADF if it is not open. */
static int look_at(int fd, int *found, int most, int *count)
{
    struct stat status;

    if (fstat(fd, &status))
        return errno;
    if (S_ISDIR(status.st_mode) && (*count)++ < most)
        found[*count - 1] = fd;
    return 0;
}

#define WORDS 16

/* A bit for each number below 1024 that was open when it was last looked. Most are still open then:
 * a test opens and closes its own. It is only where to look first, so threads may spoil it. */
static uint64_t open_before[WORDS];

/* Look at those that were open before. `left` is how many are open; it is what remains of it. */
static int try_known(long *left, int *found, int most, int *count)
{
    for (int word = 0; word < WORDS; word++)
        for (uint64_t bits = open_before[word]; bits && *left; bits &= bits - 1) {
            int error = look_at(word * 64 + __builtin_ctzll(bits), found, most, count);

            if (!error)
                (*left)--;
            else if (error != EBADF)
                return error;
        }
    return 0;
}

/* Look at descriptors one by one, first where most of them are: the first ones, and those of the
 * plugin from `floor` on. */
static int try_numbers(int floor, long *left, int *found, int most, int *count)
{
    const int ranges[][2] = {{0, 64}, {floor, floor + 64}, {64, floor}, {floor + 64, WORDS * 64}};

    for (int word = 0; word < WORDS; word++)
        open_before[word] = 0;
    for (int range = 0; range < 4; range++)
        for (int fd = ranges[range][0]; fd < ranges[range][1] && *left; fd++) {
            int error = look_at(fd, found, most, count);

            if (!error) {
                (*left)--;
                open_before[fd / 64] |= UINT64_C(1) << fd % 64;
            } else if (error != EBADF)
                return error;
        }
    return 0;
}

/* Look at single numbers. It ends when as many were open as the kernel says there are: the size of
 * this directory, since Linux 6.2. To list the directory takes four times as long, since the kernel
 * makes an inode for each entry. Returns an errno, or -1 if not all were found. */
static int try_all(int floor, int *found, int most, int *count)
{
    struct stat status;
    long left;
    int error;

    if (stat("/proc/self/fd", &status))
        return errno;
    if (!status.st_size)
        return -1;
    left = status.st_size;
    error = try_known(&left, found, most, count);
    if (!error && left) {
        *count = 0;
        left = status.st_size;
        error = try_numbers(floor, &left, found, most, count);
    }
    return error ? error : left ? -1 : 0;
}

/* Writes the descriptors to `found`, and returns how many there are. If they are more than `most`,
 * only that many were written. Most descriptors have low numbers, or numbers from `floor` on, which
 * is between 64 and 960. A negative result is an errno. */
int mountns_find_directories(int *found, int most, int floor)
{
    _Alignas(struct entry) char buffer[4096];
    int listing, count = 0, error = try_all(floor, found, most, &count);
    long length = 0;

    if (error >= 0)
        return error ? -error : count;
    count = error = 0;
    listing = open("/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (listing < 0)
        return -errno;
    while (!error && (length = syscall(SYS_getdents64, listing, buffer, sizeof buffer)) > 0)
        for (long at = 0; at < length && !error;) {
            const struct entry *one = (const struct entry *)(buffer + at);
            int fd = atoi(one->name);

            at += one->length;
            if (one->name[0] == '.' || fd == listing)
                continue;
            /* Another thread may have closed it. */
            error = look_at(fd, found, most, &count);
            error = error == EBADF ? 0 : error;
        }
    if (length < 0)
        error = errno;
    close(listing);
    return error ? -error : count;
}
