/* Performs system calls, one after another: the mounts of a sandbox in one call of this library, or
 * in a process of its own while this one does something else.
 *
 * It decides nothing. What is done is a list that Python has made, and the first call that fails
 * ends it.
 */
#include "helper.h"

#include <sys/stat.h>

/* The numbers of the calls made since 2018 are the same on every architecture. */
#define OPEN_TREE 428
#define MOVE_MOUNT 429
#define FSOPEN 430
#define FSCONFIG 431
#define FSMOUNT 432
#define FSPICK 433
#define MOUNT_SETATTR 442

/* In the order of `Call` in call_list.py. */
static const long numbers[] = {
    SYS_close, SYS_fchdir, SYS_fchmodat, SYS_fchownat, SYS_fcntl, FSCONFIG, FSMOUNT, FSOPEN,
    SYS_mkdirat, SYS_mknodat, MOVE_MOUNT, OPEN_TREE, SYS_openat, SYS_setns, SYS_symlinkat,
    SYS_unshare, SYS_utimensat, FSPICK, SYS_setxattr,
    MOUNT_SETATTR,
};

/* How many there are: a library that was compiled before some were added must not be used. */
int mountns_kinds_of_calls(void) { return sizeof numbers / sizeof *numbers; }

struct call {
    int64_t call;      /* An index of `numbers`. */
    int64_t optional;  /* Whether it may fail. */
    int64_t result;    /* The register for what it returns, or -1. */
    int64_t registers; /* A bit for each argument that is the number of a register. */
    int64_t arguments[5];
};

/* Whether a call that seems to have worked was answered by a seccomp filter: the kernel refuses what
 * is asked for here. See unshare() in syscalls.py. */
static int is_pretended(long number)
{
    if (number == SYS_unshare)
        return call(SYS_unshare, CLONE_NEWNS | 1, 0, 0, 0, 0) >= 0;
    return number == SYS_setns && call(SYS_setns, -1, CLONE_NEWNS, 0, 0, 0) >= 0;
}

/* Returns how many calls were made. If that is less than `count`, the next one has failed. */
int mountns_perform(const struct call *calls, int count, int64_t *registers)
{
    for (int i = 0; i < count; i++) {
        const struct call *one = &calls[i];
        long a[5], result;

        for (int k = 0; k < 5; k++)
            a[k] = one->registers >> k & 1 ? registers[one->arguments[k]] : one->arguments[k];
        result = call(numbers[one->call], a[0], a[1], a[2], a[3], a[4]);
        if ((result < 0 && !one->optional) || is_pretended(numbers[one->call]))
            return i;
        if (one->result >= 0)
            registers[one->result] = result;
    }
    return count;
}

/* As `Request` in call_helper.py. */
struct request {
    /* They stay where they are until the answer was received. */
    const struct call *calls;
    int64_t count;
    int64_t registers;  /* How many registers they use. */
    int64_t given;      /* How many of the first registers are descriptors that come along. */
    int64_t results;    /* How many descriptors are sent back. */
    int64_t result[4];  /* The registers of these. */
};

#define REGISTERS 256

/* As `Answer` in call_helper.py. */
struct answer {
    char byte;          /* '+' if all calls of the list have worked. */
    int32_t count;
    int32_t results[4]; /* The descriptors. */
};

#ifdef NO_CALLS
int mountns_start_performer(int channel, int watched)
{
    return start_helper(0, channel, watched, 0);
}

long mountns_request(int channel, uint64_t inode, const struct request *request,
                     const int *descriptors)
{
    return (void)channel, (void)inode, (void)request, (void)descriptors, -ENOSYS;
}

long mountns_answer(int channel, uint64_t inode, struct answer *answer, int least)
{
    return (void)channel, (void)inode, (void)answer, (void)least, -ENOSYS;
}
#else
/* Send a message with descriptors. Returns a negative errno if that fails. */
static long send_message(int channel, const void *data, long size, const int *descriptors,
                         int count)
{
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(MOST * sizeof(int))];
    } control = {.room = {0}};
    struct iovec content = {(void *)data, size};
    struct msghdr message = {.msg_iov = &content, .msg_iovlen = 1};

    if (count) {
        control.header.cmsg_level = SOL_SOCKET;
        control.header.cmsg_type = SCM_RIGHTS;
        control.header.cmsg_len = CMSG_LEN(count * sizeof(int));
        for (int i = 0; i < count; i++)
            ((int *)CMSG_DATA(&control.header))[i] = descriptors[i];
        message.msg_control = &control;
        message.msg_controllen = CMSG_SPACE(count * sizeof(int));
    }
    return call(SYS_sendmsg, channel, (long)&message, MSG_NOSIGNAL, 0, 0);
}

/* Perform what is asked for, on the stage, which is the first descriptor that comes along. Returns
 * whether it has worked. */
static int perform_request(const struct request *request, const int *received, int *results)
{
    int64_t registers[REGISTERS];

    if (request->registers > REGISTERS || request->results > 4)
        return 0;
    for (int i = 0; i < request->given; i++)
        registers[i] = received[i + 1];
    if (call(SYS_setns, received[0], CLONE_NEWNS, 0, 0, 0) || is_pretended(SYS_setns))
        return 0;
    if (mountns_perform(request->calls, request->count, registers) != request->count)
        return 0;
    for (int i = 0; i < request->results; i++)
        results[i] = registers[request->result[i]];
    return 1;
}

static long answer(int channel, char byte, const int *descriptors, int count)
{
    return send_message(channel, &byte, 1, descriptors, count);
}

static int serve(void *argument)
{
    const struct helper *helper = argument;
    int received[MOST], results[4], count, done;
    long home;

    call(SYS_prctl, PR_SET_NAME, (long)"mountns-helper", 0, 0, 0);
    call(SYS_umask, 0, 0, 0, 0, 0);
    home = call(SYS_openat, AT_FDCWD, (long)"/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC, 0, 0);
    while (home >= 0) {
        struct pollfd ready[2] = {{helper->channel, POLLIN, 0}, {helper->watched, POLLIN, 0}};
        struct request request;
        long found = call(SYS_ppoll, (long)ready, 2, 0, 0, 0), size;

        if (found == -EINTR)
            continue;
        if (found < 0 || !ready[0].revents)
            break;
        size = receive(helper->channel, &request, sizeof request, received, &count);
        if (size == 1 && !count) {
            /* Whether the last request is done with. */
            if (answer(helper->channel, '!', results, 0) < 0)
                break;
            continue;
        }
        if (size != sizeof request || count != request.given + 1)
            break; /* The other end is closed, or its process is gone. */
        done = perform_request(&request, received, results);
        /* When it is answered, nothing of the stage and of other mounts is in use here. */
        if (call(SYS_setns, home, CLONE_NEWNS, 0, 0, 0))
            break;
        for (int i = 0; done && i < count; i++)
            call(SYS_close, received[i], 0, 0, 0, 0);
        if (!done && close_others(helper->channel, helper->watched, home))
            break;
        if (answer(helper->channel, done ? '+' : '-', results, done ? request.results : 0) < 0)
            break;
        for (int i = 0; done && i < request.results; i++)
            call(SYS_close, results[i], 0, 0, 0, 0);
    }
    leave();
}

/* Start a process that performs lists: see `start_helper`. Returns its process id or a negative
 * errno. */
int mountns_start_performer(int channel, int watched)
{
    return start_helper(serve, channel, watched, 0);
}

/* Whether `channel` is this socket: a test may have closed it, and opened something else. */
static int is_own(int channel, uint64_t inode)
{
    struct stat status;

    return !fstat(channel, &status) && status.st_ino == inode;
}

/* In the process that is helped: ask for a list. `descriptors` are the stage and those that are
 * given. Returns the size of the request or a negative errno. */
long mountns_request(int channel, uint64_t inode, const struct request *request,
                     const int *descriptors)
{
    if (request->given >= MOST)
        return -EINVAL;
    if (!is_own(channel, inode))
        return -EBADF;
    return send_message(channel, request, sizeof *request, descriptors, request->given + 1);
}

/* Receive the answer if it is there, with all descriptors at numbers from `least` on if that is
 * possible. Returns 1, 0 if the helper is gone, or a negative errno, EAGAIN if there is none yet. */
long mountns_answer(int channel, uint64_t inode, struct answer *answer, int least)
{
    struct pollfd ready = {channel, POLLIN, 0};
    int received[MOST], count;
    long size;

    if (!is_own(channel, inode))
        return -EBADF;
    /* It is a blocking socket. */
    if (poll(&ready, 1, 0) <= 0)
        return -EAGAIN;
    size = receive(channel, &answer->byte, 1, received, &count);
    if (size <= 0)
        return size;
    for (int i = 0; i < count; i++) {
        int moved = i < 4 ? fcntl(received[i], F_DUPFD_CLOEXEC, least) : -1;

        if (i < 4)
            answer->results[i] = moved < 0 ? received[i] : moved;
        if (i >= 4 || moved >= 0)
            close(received[i]);
    }
    answer->count = count < 4 ? count : 4;
    return 1;
}
#endif
