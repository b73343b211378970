/* Prints what the library makes of this kernel: the backend with its reason, and how each operation is done. */
#include "upcall.h"
#include <stdio.h>
#include <string.h>

int main(void) {
    upcall_loop *loop;
    int rc = upcall_loop_new(NULL, &loop);
    if (rc != 0) {
        printf("@@ reason none %s\n", upcall_last_error());
        return 0;
    }
    printf("@@ reason %s %s\n", upcall_backend_name(upcall_loop_backend(loop)), upcall_backend_reason(loop));
    static const char *const answers[] = {"unsupported", "emulated", "native"};
    for (uint32_t kind = 1; kind < 256; kind++) {
        int answer = upcall_supports(loop, kind);
        const char *name = upcall_op_name(kind);
        if (strcmp(name, "unknown") != 0 && answer >= 0 && answer <= 2)
            printf("@@ op %s %s\n", name, answers[answer]);
    }
    return upcall_loop_free(loop);
}
