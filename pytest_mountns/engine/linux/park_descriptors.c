/* Parks descriptors in the buffer of a socket, and gets them back, unix(7), SCM_RIGHTS.
 *
 * It is done for each sandbox that a process enters and leaves: to leave one takes 39 us in place of
 * 48 (Linux 6.18). See open_directories.py, which does it step by step where it fails here.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* SCM_MAX_FD of the kernel. */
#define MOST 253

union control {
    struct cmsghdr header;
    char room[CMSG_SPACE(MOST * sizeof(int))];
};

/* Send the working directory and `count` more descriptors, which stay open; `descriptors` has room
 * for one more, the first. Returns 0 or a negative errno. */
int mountns_park(int channel, int *descriptors, int count)
{
    union control control;
    struct iovec content = {".", 1};
    struct msghdr message = {.msg_iov = &content, .msg_iovlen = 1};
    size_t size = sizeof *descriptors * (size_t)++count;
    int error = 0;

    if (count > MOST)
        return -EINVAL;
    descriptors[0] = open(".", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (descriptors[0] < 0)
        return -errno;
    memset(&control, 0, CMSG_SPACE(size));
    control.header.cmsg_level = SOL_SOCKET;
    control.header.cmsg_type = SCM_RIGHTS;
    control.header.cmsg_len = CMSG_LEN(size);
    memcpy(CMSG_DATA(&control.header), descriptors, size);
    message.msg_control = &control;
    message.msg_controllen = CMSG_SPACE(size);
    if (sendmsg(channel, &message, MSG_NOSIGNAL) < 0)
        error = errno;
    close(descriptors[0]);
    return -error;
}

/* Look at the message that waits. Returns how many descriptors came with it, or a negative errno. */
static int peek(int channel, int *descriptors)
{
    union control control;
    char byte;
    struct iovec content = {&byte, 1};
    struct msghdr message = {.msg_iov = &content, .msg_iovlen = 1};
    int count;

    message.msg_control = &control;
    message.msg_controllen = sizeof control;
    if (recvmsg(channel, &message, MSG_PEEK | MSG_DONTWAIT | MSG_CMSG_CLOEXEC) < 0)
        return -errno;
    if (message.msg_controllen < sizeof control.header)
        return -ENODATA;
    count = (int)((control.header.cmsg_len - CMSG_LEN(0)) / sizeof *descriptors);
    memcpy(descriptors, CMSG_DATA(&control.header), sizeof *descriptors * (size_t)count);
    if (!(message.msg_flags & MSG_CTRUNC))
        return count;
    /* There are more: this process may not open as many. */
    for (int i = 0; i < count; i++)
        close(descriptors[i]);
    return -EMFILE;
}

/* Go to a mount namespace, and there to the working directory that was parked. All that was parked
 * stays so, and is returned in `descriptors`. Returns how many these are, or a negative errno. */
int mountns_return(int namespace, int channel, int *descriptors)
{
    int count;

    /* setns(2) refuses while root and working directory are shared with other threads. */
    if (unshare(CLONE_FS) || setns(namespace, CLONE_NEWNS))
        return -errno;
    if (!setns(-1, CLONE_NEWNS))
        return -EPROTO; /* Something else than the kernel has answered: see syscalls.py. */
    count = peek(channel, descriptors);
    if (count > 0 && fchdir(descriptors[0])) {
        int error = errno;

        for (int i = 0; i < count; i++)
            close(descriptors[i]);
        return -error;
    }
    return count;
}
