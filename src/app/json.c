/* SPDX-License-Identifier: Apache-2.0
 * Reading JSON; see json.h. */
#include "app/small.h"

#include "app/json.h"

#include <math.h>

enum { MAX_DEPTH = 32 };

void rwkvc_json_fail(rwkvc_json *json) { json->at = json->end = NULL; }

static void skip_space(rwkvc_json *json) {
    while (json->at < json->end && (*json->at == ' ' || *json->at == '\n' || *json->at == '\r' || *json->at == '\t'))
        json->at++;
}

char rwkvc_json_kind(rwkvc_json *json) {
    skip_space(json);
    if (json->at == json->end) return 0;
    char c = (char)*json->at;
    return c == '-' || (c >= '0' && c <= '9') ? '0' : c;
}

/* The character c, which must stand next. */
static bool take(rwkvc_json *json, char c) {
    if (json->at == json->end || (char)*json->at != c) return false;
    json->at++;
    return true;
}

static void expect(rwkvc_json *json, char c) {
    skip_space(json);
    if (!take(json, c)) rwkvc_json_fail(json);
}

bool rwkvc_json_enter(rwkvc_json *json, char open) {
    expect(json, open);
    return json->at != NULL;
}

bool rwkvc_json_next(rwkvc_json *json, char close, bool *first) {
    char kind = rwkvc_json_kind(json);
    if (kind == close) {
        json->at++;
        return false;
    }
    if (!*first) expect(json, ',');
    *first = false;
    return json->at != NULL;
}

void rwkvc_json_colon(rwkvc_json *json) { expect(json, ':'); }

/* ----------------------------------------------------------------------------------------- strings */

static uint32_t hex4(rwkvc_json *json) {
    uint32_t value = 0;
    if (json->end - json->at < 4) return UINT32_MAX;
    for (int i = 0; i < 4; i++) {
        uint8_t c = *json->at++;
        uint32_t letter = c | 32u, digit = 16;
        if (c >= '0' && c <= '9') digit = c - (uint32_t)'0';
        if (letter >= 'a' && letter <= 'f') digit = letter - 'a' + 10;
        if (digit == 16) return UINT32_MAX;
        value = value << 4 | digit;
    }
    return value;
}

/* The character behind a backslash; UINT32_MAX if there is none. */
static uint32_t escaped(rwkvc_json *json) {
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    if (json->at == json->end) return UINT32_MAX;
    uint8_t c = *json->at++;
    if (c != 'u') {
        const char *found = c ? strchr(from, c) : NULL;
        return found ? (uint32_t)to[found - from] : UINT32_MAX;
    }
    uint32_t code = hex4(json);
    if (code < 0xd800 || code > 0xdfff) return code ? code : UINT32_MAX;
    if (code > 0xdbff || !take(json, '\\') || !take(json, 'u')) return UINT32_MAX;
    uint32_t low = hex4(json);
    return low < 0xdc00 || low > 0xdfff ? UINT32_MAX : 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
}

static int utf8_of(uint32_t code, char out[4]) {
    static const uint8_t lead[5] = {0, 0, 0xc0, 0xe0, 0xf0};
    int n = code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    for (int i = n - 1; i > 0; i--, code >>= 6) out[i] = (char)(0x80 | (code & 0x3f));
    out[0] = (char)(lead[n] | code);
    return n;
}

/* A string into out[room]; out NULL: only checked. */
static uint64_t read_string(rwkvc_json *json, char *out, uint64_t room) {
    uint64_t n = 0;
    expect(json, '"');
    while (json->at) {
        char piece[4];
        int size = 1;
        if (json->at == json->end || *json->at < 0x20) break;
        piece[0] = (char)*json->at++;
        if (piece[0] == '"') {
            if (out) out[n] = 0;
            return n;
        }
        if (piece[0] == '\\') {
            uint32_t code = escaped(json);
            if (code == UINT32_MAX) break;
            size = utf8_of(code, piece);
        }
        if (out) {
            if ((uint64_t)size + n >= room) break;
            memcpy(out + n, piece, (size_t)size);
        }
        n += (uint64_t)size;
    }
    rwkvc_json_fail(json);
    if (out && room) out[0] = 0;
    return 0;
}

uint64_t rwkvc_json_string(rwkvc_json *json, char *out, uint64_t room) { return read_string(json, out, room); }

/* ----------------------------------------------------------------------------------------- numbers */

static int digits(rwkvc_json *json, double *value) {
    int n = 0;
    for (; json->at < json->end && *json->at >= '0' && *json->at <= '9'; n++)
        *value = *value * 10 + (*json->at++ - '0');
    return n;
}

/* Not strtod, which reads what the host's locale says. Exact up to 15 digits and 22 decimal places. */
double rwkvc_json_number(rwkvc_json *json) {
    double value = 0, power = 0;
    skip_space(json);
    bool negative = take(json, '-'), zero = json->at < json->end && *json->at == '0';
    int n = digits(json, &value), places = 0;
    bool good = n == 1 || (n > 1 && !zero);
    if (good && take(json, '.')) good = (places = digits(json, &value)) > 0;
    if (good && (take(json, 'e') || take(json, 'E'))) {
        bool down = take(json, '-');
        if (!down) take(json, '+');
        good = digits(json, &power) > 0;
        if (power > 1000) power = 1000;
        if (down) power = -power;
    }
    if (!good) {
        rwkvc_json_fail(json);
        return 0;
    }
    int scale = (int)power - places;
    value = scale < 0 ? value / pow(10, -scale) : value * pow(10, scale);
    return negative ? -value : value;
}

uint64_t rwkvc_json_whole(rwkvc_json *json) {
    double value = rwkvc_json_number(json);
    if (value >= 0 && value <= 9007199254740992.0 && value == floor(value)) return (uint64_t)value;
    rwkvc_json_fail(json);
    return 0;
}

/* -------------------------------------------------------------------------------------- the others */

static bool word(rwkvc_json *json, const char *text) {
    size_t size = strlen(text);
    if ((size_t)(json->end - json->at) < size || memcmp(json->at, text, size) != 0) return false;
    json->at += size;
    return true;
}

bool rwkvc_json_boolean(rwkvc_json *json) {
    skip_space(json);
    if (json->at && word(json, "true")) return true;
    if (!json->at || !word(json, "false")) rwkvc_json_fail(json);
    return false;
}

/* NOLINTNEXTLINE(misc-no-recursion): bounded by MAX_DEPTH */
static void skip_value(rwkvc_json *json, int depth) {
    char kind = rwkvc_json_kind(json);
    bool first = true, object = kind == '{';
    if (depth == 0)
        rwkvc_json_fail(json);
    else if (kind == '{' || kind == '[') {
        json->at++;
        while (rwkvc_json_next(json, object ? '}' : ']', &first)) {
            if (object) read_string(json, NULL, 0);
            if (object) expect(json, ':');
            skip_value(json, depth - 1);
        }
    } else if (kind == '"')
        read_string(json, NULL, 0);
    else if (kind == '0')
        rwkvc_json_number(json);
    else if (!json->at || !(word(json, "true") || word(json, "false") || word(json, "null")))
        rwkvc_json_fail(json);
}

void rwkvc_json_skip(rwkvc_json *json) { skip_value(json, MAX_DEPTH); }

bool rwkvc_json_done(rwkvc_json *json) {
    skip_space(json);
    return json->at && json->at == json->end;
}
