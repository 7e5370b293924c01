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

/* Writes the descriptors to `found`, and returns how many there are. If they are more than `most`,
 * only that many were written. A negative result is an errno. */
int mountns_find_directories(int *found, int most)
{
    _Alignas(struct entry) char buffer[4096];
    int listing = open("/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC), count = 0, error = 0;
    long length = 0;

    if (listing < 0)
        return -errno;
    while (!error && (length = syscall(SYS_getdents64, listing, buffer, sizeof buffer)) > 0)
        for (long at = 0; at < length && !error;) {
            const struct entry *one = (const struct entry *)(buffer + at);
            struct stat status;
            int fd = atoi(one->name);

            at += one->length;
            if (one->name[0] == '.' || fd == listing)
                continue;
            if (fstat(fd, &status))
                /* Another thread has closed it. */
                error = errno == EBADF ? 0 : errno;
            else if (S_ISDIR(status.st_mode) && count++ < most)
                found[count - 1] = fd;
        }
    if (length < 0)
        error = errno;
    close(listing);
    return error ? -error : count;
}
