/* The smallest user of Upcall, in C or C++: runs one operation, and checks that header and library are of one version.
 * VERSION: which one it has to be. WITH_OTHER: there is another Rust library in the program. */
#include <upcall.h>

#include <stdio.h>
#include <string.h>

#ifdef WITH_OTHER
#ifdef __cplusplus
extern "C"
#endif
uint64_t other_sum(uint32_t n);
#endif

static void count(upcall_loop *loop, const upcall_event *event) {
    (void)loop;
    *(int *)event->user += event->result == 0;
}

int main(void) {
    char header[64];
    snprintf(header, sizeof header, "%d.%d.%d", UPCALL_VERSION_MAJOR, UPCALL_VERSION_MINOR, UPCALL_VERSION_PATCH);
    if (strcmp(header, VERSION) != 0 || strcmp(upcall_version(), VERSION) != 0) {
        printf("the header is %s, the library %s, wanted is %s\n", header, upcall_version(), VERSION);
        return 1;
    }

    upcall_loop *loop = NULL;
    int done = 0, rc = upcall_loop_new(NULL, &loop);
    if (rc == 0) {
        upcall_op op = upcall_op_nop();
        op.callback = count;
        op.user = &done;
        rc = upcall_submit(loop, &op, 1, NULL);
    }
    if (rc == 0)
        rc = upcall_run(loop);
    if (rc != 0 || done != 1 || upcall_loop_free(loop) != 0) {
        printf("%d of 1 done: %s\n", done, upcall_last_error());
        return 1;
    }

#ifdef WITH_OTHER
    if (other_sum(100) != 5050)
        return 1;
#ifdef __cplusplus
    try { /* unwinding still finds this program's frames */
        throw done;
    } catch (int one) {
        done = one;
    }
#endif
#endif
    printf("Upcall %s\n", upcall_version());
    return 0;
}
