/* What the Rust compiler's thread sanitizer calls and the one of older gcc lacks; the tsan preset links it into each
 * program. The calls reach libtsan's own interceptors, which check the ranges. */
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif
void *__tsan_memcpy(void *to, const void *from, size_t n);
void *__tsan_memmove(void *to, const void *from, size_t n);
void *__tsan_memset(void *to, int byte, size_t n);
#ifdef __cplusplus
}
#endif

void *__tsan_memcpy(void *to, const void *from, size_t n) {
    return memcpy(to, from, n);
}

void *__tsan_memmove(void *to, const void *from, size_t n) {
    return memmove(to, from, n);
}

void *__tsan_memset(void *to, int byte, size_t n) {
    return memset(to, byte, n);
}
