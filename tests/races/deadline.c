/*
 * A deadline against completion, for each kind of wait. As for cancel (ending.h): what the clock ended has had no effect,
 * and nothing ends in -ECANCELED, for nobody cancels. hazards rows 5, 6, 42.
 */
#include "ending.h"

RACE_OF(unix_recv, true)
RACE_OF(pipe_read, true)
RACE_OF(tcp_recv, true)
RACE_OF(full_recv, true)
RACE_OF(splice, true)
RACE_OF(eventfd_write, true)
RACE_OF(poll, true)
RACE_OF(accept, true)
RACE_OF(accept_on_a_thread, true)
RACE_OF(fifo_open, true)
RACE_OF(truncate, true)
RACE_OF(direct_read, true)
RACE_OF(work_queued, true)
RACE_OF(work_running, true)
RACE_OF(lookup, true)
RACE_OF(futex, true)
RACE_OF(waitid, true)
RACE_OF(signal, true)
