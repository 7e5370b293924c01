/* Starts the process that closes descriptors; see background_close.py, which does the same without
 * this library.
 *
 * fork(2) marks all memory of the process as shared, and each page that is written afterwards costs
 * a page fault. The process that is made here shares the memory for good (clone(2), CLONE_VM), as a
 * thread does, but has a table of descriptors of its own. It writes to nothing but its own stack.
 * It shares the thread-local variables of the thread that has started it, too, and errno is one of
 * them, so it makes its system calls itself and calls no function of the C library.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* How many descriptors come with one message; _MOST of background_close.py. */
#define MOST 16
#define STACK 16384
#define CLOSE_RANGE 436

struct closer {
    int channel, watched, at_rest, error;
    char *stack;
};

#if defined __x86_64__
static long call(long number, long a, long b, long c, long d, long e)
{
    register long r10 __asm__("r10") = d, r8 __asm__("r8") = e;
    long result;

    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
                     : "rcx", "r11", "memory");
    return result;
}
#elif defined __aarch64__
static long call(long number, long a, long b, long c, long d, long e)
{
    register long x8 __asm__("x8") = number, x0 __asm__("x0") = a, x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c, x3 __asm__("x3") = d, x4 __asm__("x4") = e;

    __asm__ volatile("svc #0"
                     : "+r"(x0)
                     : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4)
                     : "memory", "cc");
    return x0;
}
#else
#define NO_CALLS
#endif

#ifdef NO_CALLS
int mountns_start_closer(int channel, int watched, int at_rest)
{
    return (void)channel, (void)watched, (void)at_rest, ENOSYS;
}
#else
static _Noreturn void leave(void)
{
    for (;;)
        call(SYS_exit_group, 0, 0, 0, 0, 0);
}

static void close_kept(const int *kept, int count)
{
    for (int i = 0; i < count; i++)
        call(SYS_close, kept[i], 0, 0, 0, 0);
}

/* Receive one message. Returns its first byte, 0 at the end, or a negative errno; the descriptors
 * that came with it are in `received`. */
static long receive(int channel, int *received, int *count)
{
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(MOST * sizeof(int))];
    } control;
    unsigned char data = 0;
    struct iovec content = {&data, 1};
    struct msghdr message = {.msg_iov = &content, .msg_iovlen = 1};
    long size;

    message.msg_control = &control;
    message.msg_controllen = sizeof control;
    size = call(SYS_recvmsg, channel, (long)&message, MSG_CMSG_CLOEXEC, 0, 0);
    *count = 0;
    if (size <= 0)
        return size;
    if (message.msg_controllen >= sizeof control.header
        && control.header.cmsg_type == SCM_RIGHTS) {
        *count = (int)((control.header.cmsg_len - CMSG_LEN(0)) / sizeof(int));
        for (int i = 0; i < *count; i++)
            received[i] = ((int *)CMSG_DATA(&control.header))[i];
    }
    return data;
}

/* What was sent last is kept until more is sent, or nothing is sent for `at_rest` milliseconds. */
static int serve(void *argument)
{
    const struct closer *closer = argument;
    int kept[MOST], received[MOST], count = 0, fresh;
    struct timespec rest = {closer->at_rest / 1000, closer->at_rest % 1000 * 1000000L};

    call(SYS_prctl, PR_SET_NAME, (long)"mountns-helper", 0, 0, 0);
    for (;;) {
        struct pollfd ready[2] = {{closer->channel, POLLIN, 0}, {closer->watched, POLLIN, 0}};
        struct timespec left = rest;
        long found, data = 0;

        found = call(SYS_ppoll, (long)ready, 2, count ? (long)&left : 0, 0, 0);
        if (found == -EINTR)
            continue;
        fresh = 0;
        if (found == 0)
            data = '.';
        else if (found > 0 && ready[0].revents)
            data = receive(closer->channel, received, &fresh);
        close_kept(kept, count);
        count = fresh;
        for (int i = 0; i < count; i++)
            kept[i] = received[i];
        if (data <= 0)
            break; /* The other end is closed, or its process is gone. */
        if (data == '!')
            call(SYS_sendto, closer->channel, (long)"!", 1, MSG_NOSIGNAL, 0);
    }
    leave();
}

/* Make the process that serves, and end, so that it is no child of the process that uses it. */
static int start(void *argument)
{
    struct closer *closer = argument;
    unsigned low = closer->channel, high = closer->watched, number;
    long failed;

    if (low > high)
        number = low, low = high, high = number;
    failed = low ? call(CLOSE_RANGE, 0, low - 1, 0, 0, 0) : 0;
    if (!failed && high > low + 1)
        failed = call(CLOSE_RANGE, low + 1, high - 1, 0, 0, 0);
    if (!failed)
        failed = call(CLOSE_RANGE, high + 1, UINT32_MAX, 0, 0, 0);
    if (!failed)
        failed = call(SYS_chdir, (long)"/", 0, 0, 0, 0);
    if (!failed && clone(serve, closer->stack + STACK, CLONE_VM, closer) < 0)
        failed = -errno;
    closer->error = (int)-failed;
    leave();
}

/* Start the process. It ends when nobody has the other end of `channel` open, or `watched`, a
 * descriptor of this process, says that this process has ended. Returns 0 or an errno.
 *
 * Its memory, 32 KiB of which two pages are used, stays mapped: nobody says when it has ended. */
int mountns_start_closer(int channel, int watched, int at_rest)
{
    /* No handler of this process may run in one that shares its memory. sigprocmask(3) leaves out
     * the signals of the C library. */
    uint64_t all = UINT64_MAX, before;
    struct closer *closer;
    char *memory;
    pid_t middle;
    int error;

    memory = mmap(NULL, 2 * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return errno;
    closer = (struct closer *)memory;
    *closer = (struct closer){channel, watched, at_rest, 0, memory + STACK};
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, &before, sizeof all);
    /* With no signal at its end: it is nobody's business. */
    middle = clone(start, memory + STACK, CLONE_VM | CLONE_VFORK, closer);
    error = middle < 0 ? errno : 0;
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &before, NULL, sizeof before);
    if (middle > 0) {
        while (waitpid(middle, NULL, __WCLONE) < 0 && errno == EINTR)
            ;
        error = closer->error;
    }
    if (error)
        munmap(memory, 2 * STACK);
    return error;
}
#endif
