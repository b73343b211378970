/* The header compiles alone and twice, as C and as C++, and the two frozen structures lie in memory as they always did. */
#include "upcall.h"
#include "upcall.h"

/* Redeclares one array: a compiler refuses a size of -1 in every standard, C99 too. */
#define HOLDS(condition) extern char layout_holds[(condition) ? 1 : -1]
#define AT(type, member, offset) HOLDS(offsetof(type, member) == (offset))

AT(upcall_op, kind, 0);
AT(upcall_op, flags, 4);
AT(upcall_op, callback, 8);
AT(upcall_op, user, 16);
AT(upcall_op, timeout_ns, 24);
AT(upcall_op, buffers, 32);
AT(upcall_op, lend_max, 40);
AT(upcall_op, fd, 44);
AT(upcall_op, addr, 48);
AT(upcall_op, addr2, 56);
AT(upcall_op, len, 64);
AT(upcall_op, offset, 72);
AT(upcall_op, offset2, 80);
AT(upcall_op, arg, 88);
AT(upcall_op, arg2, 92);
AT(upcall_op, reserved, 96);
HOLDS(sizeof(upcall_op) == 128);

AT(upcall_event, id, 0);
AT(upcall_event, user, 8);
AT(upcall_event, result, 16);
AT(upcall_event, transferred, 24);
AT(upcall_event, buffer, 32);
AT(upcall_event, flags, 40);
AT(upcall_event, kind, 44);
AT(upcall_event, reserved, 48);
HOLDS(sizeof(upcall_event) == 64);

HOLDS(UPCALL_VERSION_NUMBER == UPCALL_VERSION_MAJOR * 1000000 + UPCALL_VERSION_MINOR * 1000 + UPCALL_VERSION_PATCH);
