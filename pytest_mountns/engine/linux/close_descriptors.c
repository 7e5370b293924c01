/* The process that closes descriptors; see background_close.py, which does the same without this
 * library.
 */
#include "helper.h"

#ifdef NO_CALLS
int mountns_start_closer(int channel, int watched, int at_rest)
{
    return start_helper(0, channel, watched, at_rest);
}
#else
static void close_kept(const int *kept, int count)
{
    for (int i = 0; i < count; i++)
        call(SYS_close, kept[i], 0, 0, 0, 0);
}

/* What was sent last is kept until more is sent, or nothing is sent for `option` milliseconds. */
static int serve(void *argument)
{
    const struct helper *closer = argument;
    int kept[MOST], received[MOST], count = 0, fresh;
    struct timespec rest = {closer->option / 1000, closer->option % 1000 * 1000000L};

    call(SYS_prctl, PR_SET_NAME, (long)"mountns-helper", 0, 0, 0);
    for (;;) {
        struct pollfd ready[2] = {{closer->channel, POLLIN, 0}, {closer->watched, POLLIN, 0}};
        struct timespec left = rest;
        unsigned char data = 0;
        long found;

        found = call(SYS_ppoll, (long)ready, 2, count ? (long)&left : 0, 0, 0);
        if (found == -EINTR)
            continue;
        fresh = 0;
        if (found == 0)
            data = '.';
        else if (found > 0 && ready[0].revents)
            receive(closer->channel, &data, 1, received, &fresh);
        close_kept(kept, count);
        count = fresh;
        for (int i = 0; i < count; i++)
            kept[i] = received[i];
        if (!data)
            break; /* The other end is closed, or its process is gone. */
        if (data == '!')
            call(SYS_sendto, closer->channel, (long)"!", 1, MSG_NOSIGNAL, 0);
    }
    leave();
}

/* Start the process: see `start_helper`. `at_rest` is in milliseconds. Returns its process id or a negative
 * errno. */
int mountns_start_closer(int channel, int watched, int at_rest)
{
    return start_helper(serve, channel, watched, at_rest);
}
#endif
