/* Processes that share the memory of this one and do something for it in the background.
 *
 * fork(2) marks all memory of the process as shared, and each page that is written afterwards costs
 * a page fault. A process that is made here shares the memory for good (clone(2), CLONE_VM), as a
 * thread does, but has a table of descriptors, a working directory and namespaces of its own. It
 * writes to nothing but its own stack. It shares the thread-local variables of the thread that has
 * started it, too, and errno is one of them, so it makes its system calls itself and calls no
 * function of the C library.
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

struct helper {
    /* What it does, until the other end of the channel is closed or `watched` is ready. */
    int (*serve)(void *);
    int channel, watched, option, error, pid;
    char *stack;
};

#if defined __x86_64__ && !defined NO_CALLS
static inline long call(long number, long a, long b, long c, long d, long e)
{
    register long r10 __asm__("r10") = d, r8 __asm__("r8") = e;
    long result;

    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
                     : "rcx", "r11", "memory");
    return result;
}
#elif defined __aarch64__ && !defined NO_CALLS
static inline long call(long number, long a, long b, long c, long d, long e)
{
    register long x8 __asm__("x8") = number, x0 __asm__("x0") = a, x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c, x3 __asm__("x3") = d, x4 __asm__("x4") = e;

    __asm__ volatile("svc #0"
                     : "+r"(x0)
                     : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4)
                     : "memory", "cc");
    return x0;
}
#elif !defined NO_CALLS
#define NO_CALLS
#endif

#ifdef NO_CALLS
/* In this process alone: no helper is started. */
static inline long call(long number, long a, long b, long c, long d, long e)
{
    long result = syscall(number, a, b, c, d, e);

    return result < 0 ? -errno : result;
}

static inline int start_helper(int (*serve)(void *), int channel, int watched, int option)
{
    return (void)serve, (void)channel, (void)watched, (void)option, -ENOSYS;
}
#else
static inline _Noreturn void leave(void)
{
    for (;;)
        call(SYS_exit_group, 0, 0, 0, 0, 0);
}

/* Close all descriptors but these three, of which two may be the same. Returns a negative errno. */
static inline long close_others(unsigned a, unsigned b, unsigned c)
{
    unsigned kept[3] = {a, b, c}, next = 0;

    for (int round = 0; round < 3; round++) {
        unsigned least = UINT32_MAX;
        long failed;

        for (int i = 0; i < 3; i++)
            if (kept[i] >= next && kept[i] < least)
                least = kept[i];
        if (least == UINT32_MAX)
            break;
        failed = least > next ? call(CLOSE_RANGE, next, least - 1, 0, 0, 0) : 0;
        if (failed)
            return failed;
        next = least + 1;
    }
    return call(CLOSE_RANGE, next, UINT32_MAX, 0, 0, 0);
}

/* Receive one message of at most `room` bytes. Returns its size, 0 at the end, or a negative errno;
 * the descriptors that came with it are in `received`. */
static inline long receive(int channel, void *data, long room, int *received, int *count)
{
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(MOST * sizeof(int))];
    } control;
    struct iovec content = {data, room};
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
    return size;
}

/* Make the process that serves, and end, so that it is no child of the process that uses it. */
static int make_helper(void *argument)
{
    struct helper *helper = argument;
    long failed = close_others(helper->channel, helper->watched, helper->watched);

    if (!failed)
        failed = call(SYS_chdir, (long)"/", 0, 0, 0, 0);
    if (!failed) {
        helper->pid = clone(helper->serve, helper->stack + STACK, CLONE_VM, helper);
        if (helper->pid < 0)
            failed = -errno;
    }
    helper->error = (int)-failed;
    leave();
}

/* Start the process. It ends when nobody has the other end of `channel` open, or `watched`, a
 * descriptor of this process, says that this process has ended. Returns its process id or a negative
 * errno.
 *
 * Its memory, 32 KiB of which few pages are used, stays mapped: nobody says when it has ended. */
static inline int start_helper(int (*serve)(void *), int channel, int watched, int option)
{
    /* No handler of this process may run in one that shares its memory. sigprocmask(3) leaves out
     * the signals of the C library. */
    uint64_t all = UINT64_MAX, before;
    struct helper *helper;
    char *memory;
    pid_t middle;
    int error;

    memory = mmap(NULL, 2 * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return -errno;
    helper = (struct helper *)memory;
    *helper = (struct helper){serve, channel, watched, option, 0, 0, memory + STACK};
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, &before, sizeof all);
    /* With no signal at its end: it is nobody's business. */
    middle = clone(make_helper, memory + STACK, CLONE_VM | CLONE_VFORK, helper);
    error = middle < 0 ? errno : 0;
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &before, NULL, sizeof before);
    if (middle > 0) {
        while (waitpid(middle, NULL, __WCLONE) < 0 && errno == EINTR)
            ;
        error = helper->error;
    }
    if (!error)
        return helper->pid;
    munmap(memory, 2 * STACK);
    return -error;
}
#endif
