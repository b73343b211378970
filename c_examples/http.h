/*
 * What HTTP/1.1 says (RFC 9110, RFC 9112), for a server of files, without any I/O: the head of a request, its target as
 * a path, its conditions, its ranges. http_server.c does the I/O; tests/http/fuzz.c feeds this file with random bytes.
 *
 *   - Nothing is copied: a request is slices of the bytes received, and is valid as long as these are.
 *   - It is strict where leniency has made two programs read one message differently: a line ends with CRLF, a field's
 *     name touches its colon, there is one length. Everything else is answered with 400 and the end of the connection.
 *   - What is wrong is told as the status to answer with, negative where a size would be expected.
 */
#ifndef HTTP_H
#define HTTP_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <time.h>

enum {
    HTTP_FIELDS_MAX = 64,
    HTTP_RANGES_MAX = 8, /* who asks for more gets the whole file, as RFC 9110, 14.2 allows */
};

/* Bytes that are somewhere else; not terminated. */
struct http_text {
    const char *at;
    size_t size;
};

struct http_field {
    struct http_text name, value;
};

struct http_request {
    struct http_text method, target;
    unsigned minor; /* of HTTP/1.minor */
    size_t field_count;
    struct http_field fields[HTTP_FIELDS_MAX];
    bool keep_alive;
    uint64_t body_size;
};

static inline const char *http_reason(int status)
{
    switch (status) {
    case 200: return "OK";
    case 206: return "Partial Content";
    case 301: return "Moved Permanently";
    case 304: return "Not Modified";
    case 400: return "Bad Request";
    case 403: return "Forbidden";
    case 404: return "Not Found";
    case 405: return "Method Not Allowed";
    case 408: return "Request Timeout";
    case 411: return "Length Required";
    case 412: return "Precondition Failed";
    case 413: return "Content Too Large";
    case 414: return "URI Too Long";
    case 416: return "Range Not Satisfiable";
    case 417: return "Expectation Failed";
    case 431: return "Request Header Fields Too Large";
    case 500: return "Internal Server Error";
    case 501: return "Not Implemented";
    case 503: return "Service Unavailable";
    case 505: return "HTTP Version Not Supported";
    default: return "Unknown";
    }
}

/* ---- text ---- */

static inline bool http_is(struct http_text text, const char *literal)
{
    return text.size == strlen(literal) && memcmp(text.at, literal, text.size) == 0;
}

static inline bool http_is_nocase(struct http_text text, const char *literal)
{
    return text.size == strlen(literal) && strncasecmp(text.at, literal, text.size) == 0;
}

static inline bool http_is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static inline bool http_is_alnum(char c)
{
    return http_is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

/* Each byte of `text` is a letter, a digit, or one of `others`. */
static inline bool http_consists_of(struct http_text text, const char *others)
{
    for (size_t i = 0; i < text.size; i++)
        if (text.at[i] == '\0' || (!http_is_alnum(text.at[i]) && strchr(others, text.at[i]) == NULL))
            return false;
    return true;
}

static inline bool http_is_token(struct http_text text)
{
    return text.size > 0 && http_consists_of(text, "!#$%&'*+-.^_`|~");
}

static inline struct http_text http_trim(struct http_text text)
{
    while (text.size > 0 && (*text.at == ' ' || *text.at == '\t')) {
        text.at++;
        text.size--;
    }
    while (text.size > 0 && (text.at[text.size - 1] == ' ' || text.at[text.size - 1] == '\t'))
        text.size--;
    return text;
}

/* Takes what is before the first `separator` out of `rest`, and the separator; all of it when there is none. */
static inline struct http_text http_take_until(struct http_text *rest, char separator)
{
    const char *found = rest->size > 0 ? memchr(rest->at, separator, rest->size) : NULL;
    struct http_text taken = {rest->at, found != NULL ? (size_t)(found - rest->at) : rest->size};
    size_t used = taken.size + (found != NULL);

    rest->at += used;
    rest->size -= used;
    return taken;
}

/* A decimal number; one that is too large becomes INT64_MAX. */
static inline bool http_number(struct http_text text, int64_t *number)
{
    *number = 0;
    for (size_t i = 0; i < text.size; i++) {
        if (!http_is_digit(text.at[i]))
            return false;
        if (*number > (INT64_MAX - 9) / 10)
            *number = INT64_MAX;
        else
            *number = *number * 10 + (text.at[i] - '0');
    }
    return text.size > 0;
}

/* ---- the head of a request ---- */

/* The next line of `rest`. 1; 0: it has not come yet; -400: it does not end with CRLF. */
static inline int http_take_line(struct http_text *rest, struct http_text *line)
{
    const char *end = rest->size > 0 ? memchr(rest->at, '\n', rest->size) : NULL;

    if (end == NULL)
        return 0;
    if (end == rest->at || end[-1] != '\r')
        return -400;
    *line = (struct http_text){rest->at, (size_t)(end - rest->at) - 1};
    rest->size -= line->size + 2;
    rest->at += line->size + 2;
    return 1;
}

static inline int http_parse_request_line(struct http_text line, struct http_request *request)
{
    request->method = http_take_until(&line, ' ');
    request->target = http_take_until(&line, ' ');
    if (!http_is_token(request->method) || request->target.size == 0)
        return -400;
    for (size_t i = 0; i < request->target.size; i++)
        if (request->target.at[i] <= ' ' || request->target.at[i] >= 0x7f) /* char may be signed: then it is < ' ' */
            return -400;
    if (line.size != 8 || memcmp(line.at, "HTTP/", 5) != 0 || !http_is_digit(line.at[5]) || line.at[6] != '.' ||
        !http_is_digit(line.at[7]))
        return -400;
    if (line.at[5] != '1')
        return -505;
    request->minor = (unsigned)(line.at[7] - '0');
    return 0;
}

static inline int http_parse_field(struct http_text line, struct http_request *request)
{
    struct http_field field;

    if (memchr(line.at, ':', line.size) == NULL)
        return -400;
    field.name = http_take_until(&line, ':');
    field.value = http_trim(line);
    if (!http_is_token(field.name)) /* also a line that begins with a blank, or a blank before the colon */
        return -400;
    for (size_t i = 0; i < field.value.size; i++) {
        unsigned char c = (unsigned char)field.value.at[i];

        if ((c < ' ' && c != '\t') || c == 0x7f)
            return -400;
    }
    if (request->field_count == HTTP_FIELDS_MAX)
        return -431;
    request->fields[request->field_count++] = field;
    return 0;
}

/* The value of the next field of this name, from field *index on; *index becomes where to look on. */
static inline bool http_next_value(const struct http_request *request, const char *name, size_t *index,
                                   struct http_text *value)
{
    while (*index < request->field_count) {
        const struct http_field *field = &request->fields[(*index)++];

        if (http_is_nocase(field->name, name)) {
            *value = field->value;
            return true;
        }
    }
    return false;
}

static inline bool http_value(const struct http_request *request, const char *name, struct http_text *value)
{
    size_t index = 0;

    return http_next_value(request, name, &index, value);
}

/* Where the message ends: everything that may not be misunderstood. */
static inline int http_parse_framing(struct http_request *request)
{
    struct http_text value, other;
    size_t index = 0;
    bool has_length = false;

    if (http_next_value(request, "host", &index, &value)) {
        if (http_next_value(request, "host", &index, &other) || !http_consists_of(value, "-._~!$&'()*+,;=:%[]"))
            return -400;
    } else if (request->minor >= 1) {
        return -400;
    }
    for (index = 0; http_next_value(request, "content-length", &index, &value); has_length = true) {
        int64_t size;

        if (!http_number(value, &size) || (has_length && (uint64_t)size != request->body_size))
            return -400;
        request->body_size = (uint64_t)size;
    }
    if (http_value(request, "transfer-encoding", &value)) {
        if (has_length || request->minor == 0)
            return -400;
        return http_is_nocase(value, "chunked") ? -411 : -501; /* bodies are of no use here: only the simplest */
    }
    return 0;
}

static inline int http_parse_connection(struct http_request *request)
{
    struct http_text value, element;
    bool close = false, keep = request->minor >= 1;

    for (size_t index = 0; http_next_value(request, "connection", &index, &value);) {
        while (value.size > 0) {
            element = http_trim(http_take_until(&value, ','));
            close |= http_is_nocase(element, "close");
            keep |= http_is_nocase(element, "keep-alive");
        }
    }
    request->keep_alive = keep && !close;
    if (request->minor >= 1 && http_value(request, "expect", &value)) {
        if (!http_is_nocase(value, "100-continue"))
            return -417;
        /* The answer is the final one, not 100, and then nobody knows whether the body still comes. */
        request->keep_alive = request->keep_alive && request->body_size == 0;
    }
    return 0;
}

/* Reads the head at the beginning of `bytes`. Its size; 0: more bytes are needed; a negative status: it is wrong. */
static inline int http_parse_head(const char *bytes, size_t size, struct http_request *request)
{
    struct http_text rest = {bytes, size}, line;
    int rc;

    request->method = request->target = (struct http_text){bytes, 0};
    request->field_count = 0;
    request->body_size = 0;
    request->keep_alive = false;
    request->minor = 1;
    do { /* empty lines before a request are to be ignored: RFC 9112, 2.2 */
        rc = http_take_line(&rest, &line);
        if (rc <= 0)
            return rc;
    } while (line.size == 0);
    rc = http_parse_request_line(line, request);
    while (rc == 0) {
        rc = http_take_line(&rest, &line);
        if (rc <= 0)
            return rc;
        if (line.size == 0)
            break;
        rc = http_parse_field(line, request);
    }
    if (rc >= 0)
        rc = http_parse_framing(request);
    if (rc == 0)
        rc = http_parse_connection(request);
    return rc < 0 ? rc : (int)(size - rest.size);
}

/* ---- the target as a path ---- */

static inline int http_hex(char c)
{
    if (http_is_digit(c))
        return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* A byte of the target, decoded; -1: it is none. */
static inline int http_take_byte(struct http_text *text)
{
    char c = *text->at;
    int high, low, used = 1;

    if (c == '%') {
        if (text->size < 3 || (high = http_hex(text->at[1])) < 0 || (low = http_hex(text->at[2])) < 0)
            return -1;
        c = (char)(high * 16 + low);
        used = 3;
    }
    text->at += used;
    text->size -= (size_t)used;
    return (unsigned char)c;
}

/* Ends the path's last segment: one that is empty or "." goes, one that is ".." takes the one before it along. The
 * path's new size, or -1: above the root. */
static inline int http_end_segment(char *path, size_t size)
{
    size_t begin = size;

    while (begin > 0 && path[begin - 1] != '/')
        begin--;
    if (size == begin || (size - begin == 1 && path[begin] == '.'))
        return (int)begin;
    if (size - begin == 2 && path[begin] == '.' && path[begin + 1] == '.') {
        if (begin == 0)
            return -1;
        for (begin--; begin > 0 && path[begin - 1] != '/';)
            begin--;
        return (int)begin;
    }
    path[size] = '/';
    return (int)size + 1;
}

/* Makes a request's target a path relative to the root, without "." and "..", and with a '/' at its end when it is to be
 * a directory; the root itself is "". A '/' that was encoded is one like any other. 0 or a negative status. */
static inline int http_parse_target(struct http_text target, char path[PATH_MAX])
{
    struct http_text encoded = target;
    int size = 0, c;

    if (target.size >= 7 && strncasecmp(target.at, "http://", 7) == 0) { /* as to a proxy; any server has to know it */
        encoded.at += 7;
        encoded.size -= 7;
        while (encoded.size > 0 && *encoded.at != '/' && *encoded.at != '?') {
            encoded.at++;
            encoded.size--;
        }
    } else if (*target.at != '/') { /* "*", an authority: for methods that are not done here */
        return -400;
    }
    encoded = http_take_until(&encoded, '?');
    while (encoded.size > 0) {
        c = http_take_byte(&encoded);
        if (c <= 0)
            return -400;
        if (c == '/') {
            size = http_end_segment(path, (size_t)size);
            if (size < 0)
                return -400;
        } else {
            path[size++] = (char)c;
        }
        if (size >= PATH_MAX - 16) /* room for "index.html" */
            return -414;
    }
    /* "." and ".." at the end are directories as well. */
    path[size] = '\0';
    if (strcmp(path, ".") == 0 || strcmp(path, "..") == 0 || (size >= 2 && strcmp(path + size - 2, "/.") == 0) ||
        (size >= 3 && strcmp(path + size - 3, "/..") == 0)) {
        size = http_end_segment(path, (size_t)size);
        if (size < 0)
            return -400;
        path[size] = '\0';
    }
    return 0;
}

/* The path as it may stand in a Location. `to` has room for three times its size and 1. */
static inline void http_encode_path(const char *path, char *to)
{
    for (; *path != '\0'; path++) {
        if (http_is_alnum(*path) || strchr("-._~/", *path) != NULL)
            *to++ = *path;
        else
            to += sprintf(to, "%%%02X", (unsigned)(unsigned char)*path);
    }
    *to = '\0';
}

static inline const char *http_content_type(const char *path)
{
    static const char *const types[][2] = {
        {"html", "text/html; charset=utf-8"},
        {"htm", "text/html; charset=utf-8"},
        {"css", "text/css; charset=utf-8"},
        {"js", "text/javascript; charset=utf-8"},
        {"mjs", "text/javascript; charset=utf-8"},
        {"json", "application/json"},
        {"txt", "text/plain; charset=utf-8"},
        {"md", "text/markdown; charset=utf-8"},
        {"csv", "text/csv; charset=utf-8"},
        {"xml", "application/xml"},
        {"svg", "image/svg+xml"},
        {"png", "image/png"},
        {"jpg", "image/jpeg"},
        {"jpeg", "image/jpeg"},
        {"gif", "image/gif"},
        {"webp", "image/webp"},
        {"avif", "image/avif"},
        {"ico", "image/x-icon"},
        {"woff", "font/woff"},
        {"woff2", "font/woff2"},
        {"wasm", "application/wasm"},
        {"pdf", "application/pdf"},
        {"mp3", "audio/mpeg"},
        {"mp4", "video/mp4"},
        {"webm", "video/webm"},
        {"zip", "application/zip"},
        {"gz", "application/gzip"},
    };
    const char *name = strrchr(path, '/') != NULL ? strrchr(path, '/') : path, *dot = strrchr(name, '.');

    for (size_t i = 0; dot != NULL && i < sizeof types / sizeof *types; i++)
        if (strcasecmp(dot + 1, types[i][0]) == 0)
            return types[i][1];
    return "application/octet-stream";
}

/* ---- dates ---- */

enum { HTTP_DATE_SIZE = 30 };

static inline void http_date(time_t time, char date[HTTP_DATE_SIZE])
{
    struct tm parts;

    /* The program has not called setlocale(3), so the names are English. */
    if (gmtime_r(&time, &parts) == NULL || strftime(date, HTTP_DATE_SIZE, "%a, %d %b %Y %H:%M:%S GMT", &parts) == 0)
        date[0] = '\0'; /* a year of five digits */
}

/* All three forms there ever were. */
static inline bool http_parse_date(struct http_text text, time_t *time)
{
    static const char *const forms[] = {"%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT",
                                        "%a %b %e %H:%M:%S %Y"};
    char copy[40];

    if (text.size >= sizeof copy)
        return false;
    memcpy(copy, text.at, text.size);
    copy[text.size] = '\0';
    for (size_t i = 0; i < 3; i++) {
        struct tm parts = {.tm_isdst = 0};
        const char *end = strptime(copy, forms[i], &parts);

        if (end != NULL && *end == '\0') {
            *time = timegm(&parts);
            return true;
        }
    }
    return false;
}

/* ---- conditions (RFC 9110, 13) ---- */

/* Which version of a file it is. */
struct http_version {
    char etag[48]; /* with its quotes, without W/ */
    bool weak;     /* it was changed so recently that it may change again without another date */
    time_t modified;
};

/* Is the version in a list of entity tags? A comma inside a tag makes pieces that are no tags, which match nothing. */
static inline bool http_etag_matches(struct http_text list, const struct http_version *version, bool strongly)
{
    while (list.size > 0) {
        struct http_text tag = http_trim(http_take_until(&list, ','));
        bool weak = tag.size >= 2 && memcmp(tag.at, "W/", 2) == 0;

        if (weak) {
            tag.at += 2;
            tag.size -= 2;
        }
        if (http_is(tag, version->etag) && !(strongly && (weak || version->weak)))
            return true;
    }
    return false;
}

/* -1: there is no such field; else whether one of its tags, or "*", matches. */
static inline int http_etag_condition(const struct http_request *request, const char *name,
                                      const struct http_version *version, bool strongly)
{
    struct http_text value;
    int found = -1;

    for (size_t index = 0; http_next_value(request, name, &index, &value);)
        found = found == 1 || http_is(value, "*") || http_etag_matches(value, version, strongly);
    return found;
}

/* 200: the request is to be done; 304 and 412: it is not. */
static inline int http_precondition(const struct http_request *request, const struct http_version *version)
{
    struct http_text value;
    time_t date;
    int match = http_etag_condition(request, "if-match", version, true);

    if (match == 0)
        return 412;
    if (match < 0 && http_value(request, "if-unmodified-since", &value) && http_parse_date(value, &date) &&
        version->modified > date)
        return 412;
    match = http_etag_condition(request, "if-none-match", version, false);
    if (match > 0)
        return 304;
    if (match < 0 && http_value(request, "if-modified-since", &value) && http_parse_date(value, &date) &&
        version->modified <= date)
        return 304;
    return 200;
}

/* ---- ranges (RFC 9110, 14) ---- */

struct http_range {
    int64_t offset, size;
};

/* One "first-last", "first-" or "-suffix". 1: it is some of the file's bytes; 0: none of them; -1: it is none. */
static inline int http_parse_range(struct http_text text, int64_t file_size, struct http_range *range)
{
    int64_t first, last = INT64_MAX;
    struct http_text left;

    if (memchr(text.at, '-', text.size) == NULL)
        return -1;
    left = http_take_until(&text, '-');
    if (left.size == 0) {
        if (!http_number(text, &last))
            return -1;
        first = last < file_size ? file_size - last : 0;
        *range = (struct http_range){first, file_size - first};
        return range->size > 0;
    }
    if (!http_number(left, &first) || (text.size > 0 && !http_number(text, &last)) || last < first)
        return -1;
    if (first >= file_size)
        return 0;
    *range = (struct http_range){first, (last < file_size ? last + 1 : file_size) - first};
    return 1;
}

/* Does If-Range, where there is one, name this version? */
static inline bool http_if_range(const struct http_request *request, const struct http_version *version)
{
    struct http_text value;
    time_t date;

    if (!http_value(request, "if-range", &value))
        return true;
    if (version->weak)
        return false;
    return http_parse_date(value, &date) ? date == version->modified : http_is(value, version->etag);
}

/* What of the file is wanted. 200: all of it; 206: these ranges; 416: nothing of it. */
static inline int http_ranges(const struct http_request *request, const struct http_version *version, int64_t file_size,
                              struct http_range ranges[HTTP_RANGES_MAX], size_t *count)
{
    struct http_text list;
    int64_t together = 0;
    bool any = false;

    *count = 0;
    if (!http_value(request, "range", &list) || list.size < 6 || strncasecmp(list.at, "bytes=", 6) != 0 ||
        !http_if_range(request, version))
        return 200;
    list.at += 6;
    list.size -= 6;
    while (list.size > 0) {
        struct http_text element = http_trim(http_take_until(&list, ','));
        struct http_range range;
        int rc;

        if (element.size == 0)
            continue;
        rc = http_parse_range(element, file_size, &range);
        if (rc < 0)
            return 200; /* what is not understood is ignored, as a whole */
        any = true;
        if (rc == 0)
            continue;
        if (*count == HTTP_RANGES_MAX || range.size > file_size - together) /* too many, or the same bytes again */
            return 200;
        together += range.size;
        ranges[(*count)++] = range;
    }
    if (!any)
        return 200;
    return *count > 0 ? 206 : 416;
}

#endif
