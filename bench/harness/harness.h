/* What the harness's files know of each other. */
#ifndef HARNESS_H
#define HARNESS_H

#include "bench.h"

#include <sys/types.h>

struct workload {
    const char *name;
    bool (*available)(void);
    void (*perform)(void);
};
extern const struct workload workloads[]; /* ends with a name of NULL */

/* Does this variant say anything about this workload? */
bool worth(const char *workload, const char *variant);

void budget_set(double seconds, uint64_t count, uint64_t stride);
uint64_t cpu_now(clockid_t clock);
void pin(const char *which, int otherwise);
long resident(void); /* bytes */

/* echo.c */
void echo_lockstep(void);
void echo_throughput(void);
void echo_idle(void);

#endif
