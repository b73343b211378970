/*
 * Random bytes for c_examples/http.h, as a request's head and as each of the texts in one. What is checked, besides that
 * no sanitizer complains, is below, in words.
 */
#include <stdlib.h>

#include "../../c_examples/http.h"

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "fuzz: line %d: %s\n", __LINE__, #condition);                                              \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

static void check_path(const char *path)
{
    size_t size = strlen(path);

    CHECK(size < PATH_MAX - 16);
    CHECK(path[0] != '/' && strstr(path, "//") == NULL);
    for (const char *segment = path; segment != NULL; segment = strchr(segment, '/')) {
        segment += *segment == '/';
        CHECK(strcspn(segment, "/") != 1 || segment[0] != '.');
        CHECK(strcspn(segment, "/") != 2 || strncmp(segment, "..", 2) != 0);
    }
}

/* A path is relative and clean, and encoded it is a target that is the same path. */
static void try_target(struct http_text target)
{
    static char path[PATH_MAX], again[PATH_MAX], encoded[1 + 3 * PATH_MAX];

    if (target.size == 0 || http_parse_target(target, path) != 0)
        return;
    check_path(path);
    encoded[0] = '/';
    http_encode_path(path, encoded + 1);
    CHECK(http_consists_of((struct http_text){encoded, strlen(encoded)}, "-._~/%"));
    CHECK(http_parse_target((struct http_text){encoded, strlen(encoded)}, again) == 0);
    CHECK(strcmp(path, again) == 0);
    CHECK(http_content_type(path) != NULL);
}

/* Ranges are in the file, and together not more than it. */
static void try_conditions(const struct http_request *request)
{
    static const int64_t sizes[] = {0, 1, 1000, INT64_MAX};
    const struct http_version version = {.etag = "\"1.2-3\"", .modified = 1000000000};
    struct http_range ranges[HTTP_RANGES_MAX];
    int answer = http_precondition(request, &version);
    size_t count;

    CHECK(answer == 200 || answer == 304 || answer == 412);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        int64_t together = 0;

        answer = http_ranges(request, &version, sizes[i], ranges, &count);
        CHECK(answer == 200 || answer == 206 || answer == 416);
        CHECK(answer != 206 || (count > 0 && count <= HTTP_RANGES_MAX));
        for (size_t k = 0; answer == 206 && k < count; k++) {
            CHECK(ranges[k].offset >= 0 && ranges[k].size > 0 && ranges[k].offset <= sizes[i] - ranges[k].size);
            CHECK(ranges[k].size <= sizes[i] - together);
            together += ranges[k].size;
        }
    }
}

/* However a head comes in pieces, what it is found to be is the same: nothing yet, and then always that. */
static void try_pieces(const char *bytes, size_t size, int whole)
{
    for (size_t cut = size; cut > 0; cut = cut > 40 ? cut - cut / 8 : cut - 1) {
        char *piece = malloc(cut);
        struct http_request request;
        int rc;

        CHECK(piece != NULL);
        memcpy(piece, bytes, cut);
        rc = http_parse_head(piece, cut, &request);
        CHECK(rc == whole || (rc == 0 && (whole < 0 || cut < (size_t)whole)));
        free(piece);
    }
}

static void try_head(const char *bytes, size_t size)
{
    struct http_request request;
    int rc = http_parse_head(bytes, size, &request);

    CHECK(rc <= (int)size);
    CHECK(rc >= 0 || (rc <= -400 && strcmp(http_reason(-rc), "Unknown") != 0));
    try_pieces(bytes, size, rc);
    if (rc <= 0)
        return;
    CHECK(memcmp(bytes + rc - 4, "\r\n\r\n", 4) == 0);
    CHECK(request.method.size > 0 && request.target.size > 0 && request.field_count <= HTTP_FIELDS_MAX);
    try_target(request.target);
    try_conditions(&request);
}

/* The same bytes as the value of each field that is looked at. */
static void try_value(struct http_text value)
{
    static const char *const names[] = {"If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since",
                                        "Range", "If-Range"};
    struct http_request request = {.minor = 1};
    time_t date;

    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        request.fields[0] = (struct http_field){{names[i], strlen(names[i])}, value};
        request.field_count = 1;
        if (i == 5)
            request.fields[request.field_count++] = (struct http_field){{"Range", 5}, {"bytes=0-0", 9}};
        try_conditions(&request);
    }
    if (http_parse_date(value, &date)) {
        char text[HTTP_DATE_SIZE];

        http_date(date, text);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *bytes = malloc(size > 0 ? size : 1); /* of just this size, so that a read beyond it is noticed */

    CHECK(bytes != NULL);
    memcpy(bytes, data, size);
    try_head(bytes, size);
    try_target((struct http_text){bytes, size});
    try_value((struct http_text){bytes, size});
    free(bytes);
    return 0;
}
