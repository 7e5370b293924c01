/* Moves threads of this process to another mount namespace.
 *
 * setns(2) moves the calling thread only. The C library has the same trouble with setuid(2), and
 * solves it by a signal whose handler makes the system call in every thread; see "C library/kernel
 * differences" in nptl(7). This does the same for setns(2). It knows nothing of Python.
 *
 * What happens in a handler may interrupt any code. It uses raw system calls (signal-safety(7)),
 * takes no lock, and restores errno. All shared data are atomic, or are written before the signals
 * are sent and only read after that.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/capability.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* More threads than this are refused. The memory is not touched before it is needed. */
#define MOST 32768

/* A slot holds the number of the call in its upper half, so that the handler of a signal that was
 * sent by an earlier call finds another number and does nothing. The lower half is one of these;
 * afterwards it is DONE plus the errno. */
enum { WAITING = 1, MOVING = 2, GIVEN_UP = 3, DONE = 4 };
/* In the place of a descriptor of a namespace: other requests. */
enum { DROP_CAPABILITIES = -1, DIRECTORY_ONLY = -2 };

static _Atomic uint64_t slots[MOST];
static _Atomic uint32_t moved;  /* How many have moved, or failed to; a futex(2). */
static _Atomic uint32_t wanted; /* At this number the caller is woken. */
static atomic_flag busy = ATOMIC_FLAG_INIT;
static uint32_t call_number;

static struct request { int namespace, directory, raise_capabilities; } request;

static uint64_t slot_value(uint32_t number, uint32_t state) { return (uint64_t)number << 32 | state; }

/* Carry out the request in the calling thread; returns 0 or an errno. setns(2) refuses a thread that
 * shares its root and working directory with others, and demands CAP_SYS_ADMIN and CAP_SYS_CHROOT. */
static int move_this_thread(struct request request)
{
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct before[2], wanted_now[2];
    int error = 0;

    if (request.namespace == DIRECTORY_ONLY)
        return syscall(SYS_fchdir, request.directory) ? errno : 0;
    if (request.raise_capabilities || request.namespace == DROP_CAPABILITIES) {
        if (syscall(SYS_capget, &header, before))
            return errno;
        memcpy(wanted_now, before, sizeof before);
        for (int half = 0; half < 2; half++) {
            int drop = request.namespace == DROP_CAPABILITIES;

            wanted_now[half].effective = drop ? 0 : before[half].permitted;
            if (drop)
                wanted_now[half].inheritable = 0; /* Nor ambient, then. */
        }
        if (syscall(SYS_capset, &header, wanted_now))
            return errno;
        if (request.namespace == DROP_CAPABILITIES)
            return 0;
    }
    if (syscall(SYS_unshare, CLONE_FS) || syscall(SYS_setns, request.namespace, CLONE_NEWNS)
        || syscall(SYS_fchdir, request.directory))
        error = errno;
    if (request.raise_capabilities && syscall(SYS_capset, &header, before) && !error)
        error = errno;
    return error;
}

static void handle(int signal_number, siginfo_t *info, void *context)
{
    int errno_before = errno;
    uint64_t ticket = (uint64_t)(uintptr_t)info->si_value.sival_ptr;
    uint32_t index = (uint32_t)ticket % MOST, number = (uint32_t)(ticket / MOST);
    uint64_t expected = slot_value(number, WAITING);

    (void)signal_number, (void)context;
    if (info->si_code == SI_QUEUE && info->si_pid == getpid()
        && atomic_compare_exchange_strong(&slots[index], &expected, slot_value(number, MOVING))) {
        atomic_store(&slots[index], slot_value(number, DONE + move_this_thread(request)));
        if (atomic_fetch_add(&moved, 1) + 1 == atomic_load(&wanted))
            syscall(SYS_futex, &moved, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
    }
    errno = errno_before;
}

/* Have a real-time signal handled, and return its number: `preferred` if that is handled already,
 * else the highest that nobody uses. Negative: an errno. */
int mountns_prepare(int preferred)
{
    struct sigaction action, now;

    if (preferred && !sigaction(preferred, NULL, &now) && now.sa_sigaction == handle)
        return preferred;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = handle;
    action.sa_flags = SA_SIGINFO | SA_RESTART | SA_ONSTACK;
    sigfillset(&action.sa_mask);
    for (int number = SIGRTMAX; number >= SIGRTMIN; number--)
        if (!sigaction(number, NULL, &now) && !(now.sa_flags & SA_SIGINFO) && now.sa_handler == SIG_DFL)
            return sigaction(number, &action, NULL) ? -errno : number;
    return -EBUSY;
}

static int64_t milliseconds(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static int queue(pid_t pid, int thread, int signal_number, uint64_t ticket)
{
    siginfo_t info;

    memset(&info, 0, sizeof info);
    info.si_signo = signal_number;
    info.si_code = SI_QUEUE;
    info.si_pid = pid;
    info.si_value.sival_ptr = (void *)(uintptr_t)ticket;
    return syscall(SYS_rt_tgsigqueueinfo, pid, thread, signal_number, &info) ? errno : 0;
}

/* Move `threads` to a mount namespace and a working directory, given as descriptors; or have them
 * carry out one of the other requests. Each result is
 * 0 or an errno: ESRCH if the thread has ended, ETIMEDOUT if it has not moved in time; it does not
 * move later either, unless it was already in the midst of it (EINPROGRESS). Returns 0 or an errno
 * by which nothing was done. */
int mountns_move(int signal_number, const int *threads, int *results, int count, int namespace,
                 int directory, int raise_capabilities, int timeout_ms)
{
    const pid_t pid = getpid();
    int64_t deadline = milliseconds() + timeout_ms;
    uint32_t number, queued = 0, seen;
    int late = 0;

    if (count > MOST)
        return E2BIG;
    if (atomic_flag_test_and_set(&busy))
        return EBUSY;
    number = ++call_number % (UINT32_MAX / MOST);
    request = (struct request){namespace, directory, raise_capabilities};
    atomic_store(&wanted, UINT32_MAX);
    atomic_store(&moved, 0);
    for (int i = 0; i < count; i++) {
        atomic_store(&slots[i], slot_value(number, WAITING));
        results[i] = queue(pid, threads[i], signal_number, (uint64_t)number * MOST + (uint32_t)i);
        if (results[i])
            atomic_store(&slots[i], slot_value(number, GIVEN_UP));
        else
            queued++;
    }
    atomic_store(&wanted, queued);
    while ((seen = atomic_load(&moved)) < atomic_load(&wanted) && !late) {
        struct timespec pause = {0, 10000000};

        if (!syscall(SYS_futex, &moved, FUTEX_WAIT_PRIVATE, seen, &pause, NULL, 0)
            || errno == EAGAIN)
            continue;
        late = milliseconds() >= deadline;
        for (int i = 0; i < count; i++) {
            uint64_t waiting = slot_value(number, WAITING);

            if (atomic_load(&slots[i]) == waiting
                && (late || syscall(SYS_tgkill, pid, threads[i], 0))
                && atomic_compare_exchange_strong(&slots[i], &waiting, slot_value(number, GIVEN_UP))) {
                results[i] = late ? ETIMEDOUT : ESRCH;
                atomic_fetch_sub(&wanted, 1);
            }
        }
    }
    for (int i = 0; i < count; i++) {
        uint64_t waiting = slot_value(number, WAITING);
        uint32_t state;

        /* Only if a thread that was in progress in an earlier call has been counted in this one. */
        if (atomic_compare_exchange_strong(&slots[i], &waiting, slot_value(number, GIVEN_UP)))
            results[i] = ETIMEDOUT;
        state = (uint32_t)atomic_load(&slots[i]);
        if (state >= DONE)
            results[i] = (int)(state - DONE);
        else if (state == MOVING)
            results[i] = EINPROGRESS;
    }
    atomic_flag_clear(&busy);
    return 0;
}
