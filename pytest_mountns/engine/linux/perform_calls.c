/* Performs system calls, one after another: the mounts of a sandbox in one call of this library.
 *
 * It decides nothing. What is done is a list that Python has made, and the first call that fails
 * ends it.
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The numbers of the calls made since 2018 are the same on every architecture. */
#define OPEN_TREE 428
#define MOVE_MOUNT 429
#define FSOPEN 430
#define FSCONFIG 431
#define FSMOUNT 432
#define FSPICK 433

/* In the order of `Call` in call_list.py. */
static const long numbers[] = {
    SYS_close, SYS_fchdir, SYS_fchmodat, SYS_fchownat, SYS_fcntl, FSCONFIG, FSMOUNT, FSOPEN,
    SYS_mkdirat, SYS_mknodat, MOVE_MOUNT, OPEN_TREE, SYS_openat, SYS_setns, SYS_symlinkat,
    SYS_unshare, SYS_utimensat, FSPICK,
};

/* How many there are: a library that was compiled before some were added must not be used. */
int mountns_kinds_of_calls(void) { return sizeof numbers / sizeof *numbers; }

struct call {
    int64_t call;      /* An index of `numbers`. */
    int64_t optional;  /* Whether it may fail. */
    int64_t result;    /* The register for what it returns, or -1. */
    int64_t registers; /* A bit for each argument that is the number of a register. */
    int64_t arguments[6];
};

/* Returns how many calls were made. If that is less than `count`, the next one has failed, and errno
 * says why. */
int mountns_perform(const struct call *calls, int count, int64_t *registers)
{
    for (int i = 0; i < count; i++) {
        const struct call *one = &calls[i];
        long a[6], result;

        for (int k = 0; k < 6; k++)
            a[k] = one->registers >> k & 1 ? registers[one->arguments[k]] : one->arguments[k];
        result = syscall(numbers[one->call], a[0], a[1], a[2], a[3], a[4], a[5]);
        if (result < 0 && !one->optional)
            return i;
        if (one->result >= 0)
            registers[one->result] = result;
    }
    return count;
}
