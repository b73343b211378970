/*
 * Cancel against completion, for each kind of wait: readiness of a socket, a pipe, an eventfd (a ring's poll, or epoll); a
 * worker of the kernel; the pool, queued and running; a thread of its own; the clock; futexes, children, signals. The
 * invariant is in ending.h. hazards rows 5, 6, 7, 30, 33, 36, 44.
 */
#include "ending.h"

RACE_OF(unix_recv, false)
RACE_OF(pipe_read, false)
RACE_OF(tcp_recv, false)
RACE_OF(full_recv, false)
RACE_OF(multishot_recv, false)
RACE_OF(splice, false)
RACE_OF(eventfd_write, false)
RACE_OF(poll, false)
RACE_OF(accept, false)
RACE_OF(accept_on_a_thread, false)
RACE_OF(fifo_open, false)
RACE_OF(truncate, false)
RACE_OF(direct_read, false)
RACE_OF(work_queued, false)
RACE_OF(work_running, false)
RACE_OF(lookup, false)
RACE_OF(sleep, false)
RACE_OF(zerocopy, false)
RACE_OF(futex, false)
RACE_OF(waitid, false)
RACE_OF(signal, false)
