/* SPDX-License-Identifier: Apache-2.0
 * States as files: a safetensors file with each part of the state as f32 or f16 [n_layer, ...] and the last logits
 * [n_vocab] where they are known. Its __metadata__:
 *
 *     rwkv_cpu.state         "2": the format's version. "1" had no text_digest, and its checksum covers the numbers only.
 *     rwkv_cpu.model         the model file's fingerprint
 *     rwkv_cpu.n_tokens      how many tokens the state has read, decimal
 *     rwkv_cpu.text_digest   rwkvc_text.digest, hex
 *     rwkv_cpu.crc32         hex; of "name=value\n" for each of the others by name, then of the numbers
 */
#include "app/small.h"

#include <math.h>
#include <stdio.h>

#include "app/digest.h"
#include "app/json.h"
#include "app/text.h"
#include "formats/format.h"
#include "platform/platform.h"

enum {
    LENGTH_BYTES = 8,
    MAX_HEADER_BYTES = 1 << 20,
    MAX_TENSORS = RWKVC_MAX_STATE_PARTS + 1,
    MAX_ABOUT = 32,
    NAME_BYTES = 64,
    VALUE_BYTES = 128,
    WRITTEN_HEADER_BYTES = 4096 /* what is written has 9 tensors at most, of 120 bytes each, and the metadata */
};

static const char state_key[] = "rwkv_cpu.state", model_key[] = "rwkv_cpu.model", crc_key[] = "rwkv_cpu.crc32",
                  tokens_key[] = "rwkv_cpu.n_tokens", digest_key[] = "rwkv_cpu.text_digest";

/* ------------------------------------------------------------------------------------------- texts */

void rwkvc_text_read(rwkvc_text *text, const uint32_t *tokens, uint64_t n) {
    for (uint64_t i = 0; i < n; i++) {
        uint8_t link[20];
        memcpy(link, text->digest, 16);
        memcpy(link + 16, &tokens[i], 4);
        rwkvc_blake2b_16(link, sizeof link, text->digest);
    }
    text->n_tokens += n;
}

static void to_hex(const uint8_t *bytes, size_t n, char *out) {
    static const char digits[] = "0123456789abcdef";
    for (size_t i = 0; i < n; i++) {
        out[2 * i] = digits[bytes[i] >> 4];
        out[2 * i + 1] = digits[bytes[i] & 15];
    }
    out[2 * n] = 0;
}

static bool from_hex(const char *text, uint8_t *bytes, size_t n) {
    if (strlen(text) != 2 * n) return false;
    memset(bytes, 0, n);
    for (size_t i = 0; i < 2 * n; i++) {
        char c = text[i];
        int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
        if (digit < 0) return false;
        bytes[i / 2] = (uint8_t)(bytes[i / 2] << 4 | digit);
    }
    return true;
}

/* ------------------------------------------------------------------------------------------ layout */

void rwkvc_state_describe(const rwkvc_model *model, rwkvc_state_layout *layout) {
    memset(layout, 0, sizeof *layout);
    layout->floats = rwkvc_state_floats(model);
    layout->n_layer = model->config.n_layer;
    layout->n_vocab = model->config.size[RWKVC_SIZE_VOCAB];
    while (layout->n_parts < RWKVC_MAX_STATE_PARTS &&
           rwkvc_state_part_info(model, layout->n_parts, &layout->parts[layout->n_parts]) == RWKVC_OK)
        layout->n_parts++;
    uint8_t digest[32];
    rwkvc_sha256(model->data, rwkvc_table_bytes(model->n_infos), digest);
    to_hex(digest, 16, layout->fingerprint);
}

static uint64_t part_floats(const rwkvc_state_part *part) {
    uint64_t n = 1;
    for (uint32_t d = 0; d < part->n_dims; d++) n *= part->shape[d];
    return n;
}

/* A layout that hosts may have changed: every part must lie in the state. */
static rwkvc_status check_layout(const rwkvc_state_layout *layout) {
    bool good = layout && layout->n_layer && layout->n_parts <= RWKVC_MAX_STATE_PARTS &&
                layout->floats % layout->n_layer == 0 && strlen(layout->fingerprint) == 32;
    for (uint32_t p = 0; good && p < layout->n_parts; p++) {
        const rwkvc_state_part *part = &layout->parts[p];
        uint64_t stride = layout->floats / layout->n_layer;
        good = part->name && part->n_dims <= 3 && part->layer_stride == stride && part->offset <= stride &&
               part_floats(part) <= stride - part->offset;
    }
    return good ? RWKVC_OK : rwkvc_fail(RWKVC_E_ARGUMENT, "this is no layout of a state: use rwkvc_state_describe");
}

/* ----------------------------------------------------------------------------------------- writing */

typedef struct {
    char *text;
    size_t size, room;
} builder;

#if defined(__GNUC__)
__attribute__((format(printf, 2, 3)))
#endif
static void
add(builder *b, const char *format, ...) {
    va_list args;
    va_start(args, format);
    b->size += (size_t)vsnprintf(b->text + b->size, b->room - b->size, format, args);
    va_end(args);
}

static float largest(const rwkvc_state_layout *layout, const rwkvc_state_part *part, const float *state) {
    float most = 0;
    for (uint64_t layer = 0; layer < layout->n_layer; layer++)
        for (uint64_t i = 0, n = part_floats(part); i < n; i++) {
            float x = fabsf(state[layer * part->layer_stride + part->offset + i]);
            if (!(x <= most)) most = x;
        }
    return most;
}

/* One part of all layers to `out`; its bytes. */
static uint64_t write_part(const rwkvc_state_layout *layout, const rwkvc_state_part *part, const float *state,
                           bool half, uint8_t *out) {
    uint64_t n = part_floats(part), size = n * (half ? 2 : 4);
    for (uint64_t layer = 0; out && layer < layout->n_layer; layer++, out += size) {
        const float *from = state + layer * part->layer_stride + part->offset;
        if (!half) memcpy(out, from, size);
        for (uint64_t i = 0; half && i < n; i++) {
            uint16_t value = rwkvc_float_to_half(from[i]);
            memcpy(out + 2 * i, &value, 2);
        }
    }
    return size * layout->n_layer;
}

static void add_tensor(builder *b, const char *name, bool half, uint64_t n_layer, const rwkvc_state_part *part,
                       uint64_t n, uint64_t begin, uint64_t end) {
    add(b, ", \"%s\": {\"dtype\": \"%s\", \"shape\": [%llu", name, half ? "F16" : "F32",
        (unsigned long long)(part ? n_layer : n));
    for (uint32_t d = 0; part && d < part->n_dims; d++) add(b, ", %u", part->shape[d]);
    add(b, "], \"data_offsets\": [%llu, %llu]}", (unsigned long long)begin, (unsigned long long)end);
}

/* "name=value\n" of what the checksum covers, sorted by name. */
static uint32_t checksum_of_text(const char *fingerprint, const char *n_tokens, const char *digest,
                                 const char *version) {
    char told[512];
    int size = snprintf(told, sizeof told, "%s=%s\n%s=%s\n%s=%s\n%s=%s\n", model_key, fingerprint, tokens_key, n_tokens,
                        state_key, version, digest_key, digest);
    return rwkvc_crc32(0, (const uint8_t *)told, (uint64_t)size);
}

rwkvc_status rwkvc_state_to_bytes(const rwkvc_state_layout *layout, const rwkvc_saved_state *saved, uint32_t half,
                                  uint8_t *out, uint64_t room, uint64_t *size_bytes) {
    rwkvc_status status = check_layout(layout);
    if (status) return status;
    if (!saved || !saved->state || !size_bytes || (room && !out))
        return rwkvc_fail(RWKVC_E_ARGUMENT, "no state, or nowhere to put its file");
    char header[WRITTEN_HEADER_BYTES], digest[33], n_tokens[24];
    builder b = {header, 0, sizeof header};
    to_hex(saved->text.digest, 16, digest);
    snprintf(n_tokens, sizeof n_tokens, "%llu", (unsigned long long)saved->text.n_tokens);
    add(&b, "{\"__metadata__\": {\"%s\": \"2\", \"%s\": \"%s\", \"%s\": \"%s\", \"%s\": \"%s\", \"%s\": \"", state_key,
        model_key, layout->fingerprint, tokens_key, n_tokens, digest_key, digest, crc_key);
    size_t crc_at = b.size;
    add(&b, "00000000\"}");
    bool halves[RWKVC_MAX_STATE_PARTS];
    uint64_t end = 0;
    for (uint32_t p = 0; p < layout->n_parts; p++) {
        const rwkvc_state_part *part = &layout->parts[p];
        halves[p] = half && largest(layout, part, saved->state) <= 65504;
        uint64_t begin = end;
        end += write_part(layout, part, saved->state, halves[p], NULL);
        add_tensor(&b, part->name, halves[p], layout->n_layer, part, 0, begin, end);
    }
    uint64_t logits_bytes = saved->logits ? 4 * (uint64_t)layout->n_vocab : 0;
    if (logits_bytes) add_tensor(&b, "logits", false, 0, NULL, layout->n_vocab, end, end + logits_bytes);
    add(&b, "}");
    uint64_t body = rwkvc_round_up(LENGTH_BYTES + b.size, RWKVC_ALIGN), length = body - LENGTH_BYTES;
    *size_bytes = body + end + logits_bytes;
    if (room < *size_bytes) return RWKVC_OK;

    memcpy(out, &length, LENGTH_BYTES);
    memcpy(out + LENGTH_BYTES, header, b.size);
    memset(out + LENGTH_BYTES + b.size, ' ', (size_t)(length - b.size));
    uint8_t *at = out + body;
    for (uint32_t p = 0; p < layout->n_parts; p++)
        at += write_part(layout, &layout->parts[p], saved->state, halves[p], at);
    if (logits_bytes) memcpy(at, saved->logits, logits_bytes);
    char crc[9];
    snprintf(crc, sizeof crc, "%08x",
             rwkvc_crc32(checksum_of_text(layout->fingerprint, n_tokens, digest, "2"), out + body, end + logits_bytes));
    memcpy(out + LENGTH_BYTES + crc_at, crc, 8);
    return RWKVC_OK;
}

rwkvc_status rwkvc_state_save(const rwkvc_state_layout *layout, const char *path, const rwkvc_saved_state *saved,
                              uint32_t half) {
    uint64_t size = 0;
    if (!path) return rwkvc_fail(RWKVC_E_ARGUMENT, "no path");
    rwkvc_status status = rwkvc_state_to_bytes(layout, saved, half, NULL, 0, &size);
    if (status) return status;
    uint8_t *bytes = rwkvc_alloc(size);
    if (!bytes) return rwkvc_fail(RWKVC_E_NOMEM, "out of memory for a state of %llu bytes", (unsigned long long)size);
    status = rwkvc_state_to_bytes(layout, saved, half, bytes, size, &size);
    char reason[256];
    if (!status && rwkvc_write_file(path, bytes, size, reason, sizeof reason))
        status = rwkvc_fail(RWKVC_E_IO, "%s: cannot be written: %s", path, reason);
    rwkvc_free(bytes);
    return status;
}

/* ----------------------------------------------------------------------------------------- reading */

typedef struct {
    char name[NAME_BYTES], value[VALUE_BYTES];
} about_entry;

typedef struct {
    char name[NAME_BYTES], dtype[8];
    uint32_t n_dims;
    uint64_t shape[4], begin, end;
} tensor_entry;

/* What a header says; too_much: more than any state file says. */
typedef struct {
    about_entry about[MAX_ABOUT];
    tensor_entry tensors[MAX_TENSORS];
    uint32_t n_about, n_tensors;
    bool too_much;
} state_header;

static const char *told(const state_header *header, const char *name) {
    for (uint32_t i = 0; i < header->n_about; i++)
        if (strcmp(header->about[i].name, name) == 0) return header->about[i].value;
    return NULL;
}

/* Kept sorted by name, as the checksum goes through them. */
static void read_about(rwkvc_json *json, state_header *header) {
    bool first = true;
    if (!rwkvc_json_enter(json, '{')) return;
    while (rwkvc_json_next(json, '}', &first)) {
        about_entry entry;
        rwkvc_json_string(json, entry.name, sizeof entry.name);
        rwkvc_json_colon(json);
        rwkvc_json_string(json, entry.value, sizeof entry.value);
        uint32_t at = header->n_about;
        while (at && strcmp(header->about[at - 1].name, entry.name) > 0) at--;
        if (header->n_about == MAX_ABOUT || (at && strcmp(header->about[at - 1].name, entry.name) == 0)) {
            rwkvc_json_fail(json);
            return;
        }
        memmove(&header->about[at + 1], &header->about[at], (header->n_about - at) * sizeof entry);
        header->about[at] = entry;
        header->n_about++;
    }
}

/* Up to `most` whole numbers; how many there are. */
static uint32_t read_numbers(rwkvc_json *json, uint64_t *out, uint32_t most) {
    uint32_t n = 0;
    bool first = true;
    if (!rwkvc_json_enter(json, '[')) return 0;
    while (rwkvc_json_next(json, ']', &first)) {
        uint64_t value = rwkvc_json_whole(json);
        if (n == most) rwkvc_json_fail(json);
        if (n < most) out[n++] = value;
    }
    return n;
}

static void read_tensor(rwkvc_json *json, tensor_entry *tensor) {
    bool first = true;
    if (!rwkvc_json_enter(json, '{')) return;
    while (rwkvc_json_next(json, '}', &first)) {
        char key[NAME_BYTES];
        uint64_t offsets[2] = {1, 0};
        rwkvc_json_string(json, key, sizeof key);
        rwkvc_json_colon(json);
        if (strcmp(key, "dtype") == 0)
            rwkvc_json_string(json, tensor->dtype, sizeof tensor->dtype);
        else if (strcmp(key, "shape") == 0)
            tensor->n_dims = read_numbers(json, tensor->shape, 4);
        else if (strcmp(key, "data_offsets") == 0) {
            read_numbers(json, offsets, 2);
            tensor->begin = offsets[0];
            tensor->end = offsets[1];
        } else
            rwkvc_json_skip(json);
    }
}

static bool read_header(const uint8_t *text, uint64_t size, state_header *header) {
    rwkvc_json json = {text, text + size};
    bool first = true;
    memset(header, 0, sizeof *header);
    if (!rwkvc_is_utf8((const char *)text, size) || !rwkvc_json_enter(&json, '{')) return false;
    while (rwkvc_json_next(&json, '}', &first)) {
        char name[NAME_BYTES];
        rwkvc_json_string(&json, name, sizeof name);
        rwkvc_json_colon(&json);
        if (strcmp(name, "__metadata__") == 0 && !header->n_about)
            read_about(&json, header);
        else if (header->n_tensors < MAX_TENSORS) {
            tensor_entry *tensor = &header->tensors[header->n_tensors++];
            memcpy(tensor->name, name, sizeof name);
            read_tensor(&json, tensor);
        } else {
            header->too_much = true;
            rwkvc_json_skip(&json);
        }
    }
    return rwkvc_json_done(&json);
}

static rwkvc_status damaged(const char *what) {
    return rwkvc_fail(RWKVC_E_STATE, "the state's header is damaged (%s)", what);
}

/* That the file is a state of this model, and whole. */
static rwkvc_status check_about(const rwkvc_state_layout *layout, const state_header *header, const uint8_t *body,
                                uint64_t body_bytes, rwkvc_text *text) {
    const char *version = told(header, state_key), *model = told(header, model_key), *crc = told(header, crc_key),
               *n_tokens = told(header, tokens_key), *digest = told(header, digest_key);
    if (strcmp(version, "1") != 0 && strcmp(version, "2") != 0)
        return rwkvc_fail_hint(RWKVC_E_STATE, "Update rwkv_cpu.", "the state was written by a newer rwkv_cpu");
    if (!model || strcmp(model, layout->fingerprint) != 0)
        return rwkvc_fail_hint(RWKVC_E_STATE, "Load it with the very model it was saved from.",
                               "this state was made with another model file");
    uint32_t sum = 0;
    for (uint32_t i = 0; i < header->n_about && version[0] == '2'; i++) {
        const about_entry *entry = &header->about[i];
        if (strcmp(entry->name, crc_key) == 0) continue;
        sum = rwkvc_crc32(sum, (const uint8_t *)entry->name, strlen(entry->name));
        sum = rwkvc_crc32(sum, (const uint8_t *)"=", 1);
        sum = rwkvc_crc32(sum, (const uint8_t *)entry->value, strlen(entry->value));
        sum = rwkvc_crc32(sum, (const uint8_t *)"\n", 1);
    }
    char expected[9];
    snprintf(expected, sizeof expected, "%08x", rwkvc_crc32(sum, body, body_bytes));
    if (!crc || strcmp(crc, expected) != 0)
        return rwkvc_fail(RWKVC_E_STATE, "the state is damaged (its checksum is wrong)");
    size_t n = n_tokens ? strspn(n_tokens, "0123456789") : 0;
    if (n == 0 || n > 18 || n_tokens[n]) return damaged("its number of tokens");
    text->n_tokens = 0;
    for (size_t i = 0; i < n; i++) text->n_tokens = text->n_tokens * 10 + (uint64_t)(n_tokens[i] - '0');
    memset(text->digest, 0, sizeof text->digest);
    if (version[0] == '2' && !(digest && from_hex(digest, text->digest, 16))) return damaged("its text digest");
    return RWKVC_OK;
}

static const tensor_entry *find(const state_header *header, const char *name) {
    const tensor_entry *found = NULL;
    for (uint32_t i = 0; i < header->n_tensors; i++)
        if (strcmp(header->tensors[i].name, name) == 0) {
            if (found) return NULL;
            found = &header->tensors[i];
        }
    return found;
}

/* n numbers of a tensor to out, `stride` floats from row to row of `width`. */
static rwkvc_status read_values(const tensor_entry *tensor, const uint8_t *body, uint64_t rows, uint64_t width,
                                uint64_t stride, float *out) {
    bool half = strcmp(tensor->dtype, "F16") == 0;
    const uint8_t *from = body + tensor->begin;
    for (uint64_t row = 0; row < rows; row++, out += stride)
        for (uint64_t i = 0; i < width; i++) {
            uint16_t value;
            if (half) {
                memcpy(&value, from, 2);
                out[i] = rwkvc_half_to_float(value);
            } else
                memcpy(&out[i], from, 4);
            if (!isfinite(out[i])) return damaged("it holds NaN or Inf");
            from += half ? 2 : 4;
        }
    return RWKVC_OK;
}

/* Whether the tensor is [first, shape...] of a known dtype and lies in the body. */
static bool fits(const tensor_entry *tensor, uint64_t first, uint32_t n_dims, const uint32_t *shape,
                 uint64_t body_bytes) {
    bool half = strcmp(tensor->dtype, "F16") == 0;
    if ((!half && strcmp(tensor->dtype, "F32") != 0) || tensor->n_dims != n_dims + 1 || tensor->shape[0] != first)
        return false;
    uint64_t n = first;
    for (uint32_t d = 0; d < n_dims; d++) {
        if (tensor->shape[d + 1] != shape[d]) return false;
        n *= shape[d];
    }
    return tensor->begin <= tensor->end && tensor->end <= body_bytes &&
           tensor->end - tensor->begin == n * (half ? 2 : 4);
}

static rwkvc_status read_parts(const rwkvc_state_layout *layout, const state_header *header, const uint8_t *body,
                               uint64_t body_bytes, float *state, float *logits, uint32_t *has_logits) {
    const tensor_entry *last = find(header, "logits");
    if (header->too_much || header->n_tensors != layout->n_parts + (last ? 1 : 0))
        return damaged("its parts are not those of this model");
    for (uint32_t p = 0; p < layout->n_parts; p++) {
        const rwkvc_state_part *part = &layout->parts[p];
        const tensor_entry *tensor = find(header, part->name);
        if (!tensor || !fits(tensor, layout->n_layer, part->n_dims, part->shape, body_bytes))
            return damaged("its parts are not those of this model");
        rwkvc_status status =
            read_values(tensor, body, layout->n_layer, part_floats(part), part->layer_stride, state + part->offset);
        if (status) return status;
    }
    *has_logits = last != NULL;
    if (!last) return RWKVC_OK;
    if (!fits(last, layout->n_vocab, 0, NULL, body_bytes)) return damaged("its logits are not those of this model");
    return logits ? read_values(last, body, 1, layout->n_vocab, 0, logits) : RWKVC_OK;
}

rwkvc_status rwkvc_state_from_bytes(const rwkvc_state_layout *layout, const uint8_t *bytes, uint64_t size_bytes,
                                    float *state, float *logits, uint32_t *has_logits, rwkvc_text *text) {
    rwkvc_status status = check_layout(layout);
    if (status) return status;
    if (!bytes || !state) return rwkvc_fail(RWKVC_E_ARGUMENT, "no bytes, or nowhere to put the state");
    uint64_t length = 0;
    if (size_bytes >= LENGTH_BYTES) memcpy(&length, bytes, LENGTH_BYTES);
    state_header *header = rwkvc_alloc(sizeof *header);
    if (!header) return rwkvc_fail(RWKVC_E_NOMEM, "out of memory");
    bool good = length >= 2 && length <= MAX_HEADER_BYTES && length <= size_bytes - LENGTH_BYTES &&
                read_header(bytes + LENGTH_BYTES, length, header);
    rwkvc_text about = {0};
    uint32_t logits_there = 0;
    if (!good || !told(header, state_key))
        status = rwkvc_fail_hint(RWKVC_E_FORMAT, "",
                                 told(header, state_key) ? "the state's header is damaged"
                                                         : "this is not a state file of rwkv_cpu");
    /* A header that was refused may claim any length: nothing lies behind it then. */
    const uint8_t *body = status ? NULL : bytes + LENGTH_BYTES + length;
    uint64_t body_bytes = status ? 0 : size_bytes - LENGTH_BYTES - length;
    if (!status) status = check_about(layout, header, body, body_bytes, &about);
    if (!status) status = read_parts(layout, header, body, body_bytes, state, logits, &logits_there);
    /* Version 1 did not say what was read: the numbers themselves stand for it. */
    if (!status && told(header, state_key)[0] == '1')
        rwkvc_blake2b_16((const uint8_t *)state, 4 * layout->floats, about.digest);
    rwkvc_free(header);
    if (status) return status;
    if (text) *text = about;
    if (has_logits) *has_logits = logits_there;
    return RWKVC_OK;
}

rwkvc_status rwkvc_state_load(const rwkvc_state_layout *layout, const char *path, float *state, float *logits,
                              uint32_t *has_logits, rwkvc_text *text) {
    rwkvc_status status = check_layout(layout);
    if (status) return status;
    if (!path) return rwkvc_fail(RWKVC_E_ARGUMENT, "no path");
    uint8_t *bytes;
    uint64_t size, most = (layout->floats + layout->n_vocab) * 4 + MAX_HEADER_BYTES + LENGTH_BYTES;
    char reason[256];
    status = rwkvc_read_file(path, most + 1, &bytes, &size, reason, sizeof reason);
    if (status) return rwkvc_fail(status, "%s: cannot be read: %s", path, reason);
    status = rwkvc_state_from_bytes(layout, bytes, size, state, logits, has_logits, text);
    rwkvc_free(bytes);
    return status ? rwkvc_fail_at(path, status) : RWKVC_OK;
}
