/* SPDX-License-Identifier: Apache-2.0
 * The .rwkv file: laying out, writing and checking its binary table; binding the tensors of an open one.
 *
 * A .rwkv file is a safetensors file: u64 length of a JSON header, the header (padded with spaces so that the data
 * section begins at a multiple of 64), the data section. The section begins with this table, little endian:
 *
 *     0  char magic[8]      "RWKVCPU\0"        32  u32 version, n_layer, size[16]; f32 ln_eps, gn_eps; u32 0
 *     8  u32 file_version                     116  12 bytes of zero
 *    12  u32 table_bytes = 128 + 96 * n       128  n entries:
 *    16  u32 crc32 of the table, this as 0         u32 kind, format; u64 rows, cols, offset, size_bytes;
 *    20  u32 n_tensors                             u32 crc32, 0; char name[48]
 *    24  u64 data_bytes, whole section
 *
 * Tensors follow without gaps in the order of the entries: the version's own in rwkvc_config_tensor's order, then
 * BYTES. Padding to 64 bytes lies inside size_bytes. */
#include <math.h>
#include <stdio.h>

#include "app/digest.h"
#include "formats/format.h"
#include "platform/platform.h"
#include "versions/table.h"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the file format and the packed weights are little endian"
#endif

static const char magic[8] = "RWKVCPU";
enum { HEAD_BYTES = 128, ENTRY_BYTES = 96, NAME_BYTES = 48, MAX_TENSORS = 1 << 20, MAX_BYTES_TENSORS = 64 };

typedef struct {
    char magic[8];
    uint32_t file_version, table_bytes, crc32, n_tensors;
    uint64_t data_bytes;
    rwkvc_config config;
    uint8_t zero[12];
} table_head;

typedef struct {
    uint32_t kind, format;
    uint64_t rows, cols, offset, size_bytes;
    uint32_t crc32, zero;
    char name[NAME_BYTES];
} table_entry;

_Static_assert(sizeof(table_head) == HEAD_BYTES && sizeof(table_entry) == ENTRY_BYTES, "the file format is fixed");

/* ------------------------------------------------------------------------------------- writing */

uint64_t rwkvc_table_bytes(uint32_t n_tensors) {
    return rwkvc_round_up(HEAD_BYTES + (uint64_t)ENTRY_BYTES * n_tensors, RWKVC_ALIGN);
}

rwkvc_status rwkvc_table_layout(const rwkvc_config *config, rwkvc_tensor_info *tensors, uint32_t n,
                                uint64_t *data_bytes) {
    rwkvc_status status = rwkvc_config_check(config);
    if (status) return status;
    uint32_t n_model = rwkvc_config_tensors(config);
    if (n < n_model || n > MAX_TENSORS)
        return rwkvc_fail(RWKVC_E_ARGUMENT, "%u tensors: the version has %u", n, n_model);
    uint64_t offset = rwkvc_table_bytes(n);
    for (uint32_t i = 0; i < n; i++) {
        rwkvc_tensor_info *t = &tensors[i];
        bool bytes = t->kind == RWKVC_KIND_BYTES;
        if (bytes != (i >= n_model) || strlen(t->name) >= NAME_BYTES)
            return rwkvc_fail(RWKVC_E_ARGUMENT, "tensor %u (%s) is not where it belongs", i, t->name);
        t->size_bytes = rwkvc_packed_bytes(t->kind, t->format, t->rows, t->cols);
        if (t->size_bytes == 0)
            return rwkvc_fail(RWKVC_E_ARGUMENT, "%s cannot be stored in format %u", t->name, t->format);
        t->offset = offset;
        offset += t->size_bytes;
    }
    *data_bytes = offset;
    return RWKVC_OK;
}

rwkvc_status rwkvc_table_write(const rwkvc_config *config, const rwkvc_tensor_info *tensors, uint32_t n, uint8_t *out) {
    if (n == 0 || n > MAX_TENSORS) return rwkvc_fail(RWKVC_E_ARGUMENT, "%u tensors", n);
    table_head head = {.file_version = 1,
                       .table_bytes = HEAD_BYTES + ENTRY_BYTES * n,
                       .n_tensors = n,
                       .data_bytes = tensors[n - 1].offset + tensors[n - 1].size_bytes,
                       .config = *config};
    memcpy(head.magic, magic, sizeof magic);
    head.config.source = 0;
    memset(out, 0, rwkvc_table_bytes(n));
    for (uint32_t i = 0; i < n; i++) {
        const rwkvc_tensor_info *t = &tensors[i];
        /* as old as it can be: engines before version 2 know q8, f16 and f32 */
        if (t->format > RWKVC_FORMAT_Q8 && t->format != RWKVC_FORMAT_BYTES) head.file_version = 2;
        table_entry entry = {t->kind, t->format, t->rows, t->cols, t->offset, t->size_bytes, t->crc32, 0, {0}};
        snprintf(entry.name, sizeof entry.name, "%.47s", t->name);
        memcpy(out + HEAD_BYTES + (uint64_t)i * ENTRY_BYTES, &entry, sizeof entry);
    }
    memcpy(out, &head, sizeof head);
    head.crc32 = rwkvc_crc32(0, out, head.table_bytes);
    memcpy(out, &head, sizeof head);
    return RWKVC_OK;
}

/* ------------------------------------------------------------------------------------ checking */

static uint32_t table_crc(const uint8_t *table, uint32_t table_bytes, uint8_t *copy) {
    memcpy(copy, table, table_bytes);
    memset(copy + offsetof(table_head, crc32), 0, 4);
    return rwkvc_crc32(0, copy, table_bytes);
}

static const char not_rwkv[] = "A checkpoint becomes one by: rwkv-cpu quantize CHECKPOINT OUT.rwkv";

/* Find the data section and check everything that does not depend on the entries. */
static rwkvc_status check_head(const uint8_t *bytes, uint64_t size, const uint8_t **data, table_head *head) {
    uint64_t header;
    if ((uintptr_t)bytes % RWKVC_ALIGN) return rwkvc_fail(RWKVC_E_ARGUMENT, "the file's bytes are not 64-byte aligned");
    if (size < 8 + HEAD_BYTES)
        return rwkvc_fail(RWKVC_E_FORMAT, "%llu bytes: too short for a model", (unsigned long long)size);
    memcpy(&header, bytes, sizeof header);
    if (header > size - 8 - HEAD_BYTES)
        return rwkvc_fail_hint(RWKVC_E_FORMAT, not_rwkv, "no .rwkv file: its header would be %llu bytes long",
                               (unsigned long long)header);
    *data = bytes + 8 + header;
    memcpy(head, *data, sizeof *head);
    if (memcmp(head->magic, magic, sizeof magic))
        return rwkvc_fail_hint(RWKVC_E_FORMAT, not_rwkv,
                               "no .rwkv file: the data section does not begin with its table");
    if (head->file_version > RWKVC_FILE_VERSION)
        return rwkvc_fail(RWKVC_E_UNSUPPORTED,
                          "file version %u: this engine reads versions up to %d, a newer rwkv_cpu is needed",
                          head->file_version, RWKVC_FILE_VERSION);
    if ((8 + header) % RWKVC_ALIGN) return rwkvc_fail(RWKVC_E_FORMAT, "the data section is not 64-byte aligned");
    uint64_t have = size - 8 - header;
    if (head->data_bytes != have)
        return rwkvc_fail(RWKVC_E_FORMAT, "the data section has %llu bytes, its table says %llu: truncated or damaged",
                          (unsigned long long)have, (unsigned long long)head->data_bytes);
    static const uint8_t zero[sizeof head->zero];
    if (memcmp(head->zero, zero, sizeof zero) || head->config.source)
        return rwkvc_fail(RWKVC_E_FORMAT, "the table is damaged: its reserved bytes are not zero");
    if (head->file_version < 1 || head->n_tensors > MAX_TENSORS ||
        head->table_bytes != HEAD_BYTES + (uint64_t)ENTRY_BYTES * head->n_tensors ||
        rwkvc_table_bytes(head->n_tensors) > have)
        return rwkvc_fail(RWKVC_E_FORMAT, "the table is damaged: %u tensors in %u bytes", head->n_tensors,
                          head->table_bytes);
    uint8_t *copy = rwkvc_alloc(head->table_bytes);
    if (!copy) return rwkvc_fail(RWKVC_E_NOMEM, "out of memory for a table of %u bytes", head->table_bytes);
    uint32_t crc = table_crc(*data, head->table_bytes, copy);
    rwkvc_free(copy);
    if (crc != head->crc32) return rwkvc_fail(RWKVC_E_FORMAT, "the table is damaged: its checksum is wrong");
    return RWKVC_OK;
}

/* Entry i must be what the version has there, stored in a format that exists, right behind the one before. */
static rwkvc_status check_entry(const rwkvc_config *config, uint32_t n_model, uint32_t i, const table_entry *entry,
                                uint64_t *offset, uint64_t data_bytes, rwkvc_tensor_info *info) {
    if (entry->name[NAME_BYTES - 1]) return rwkvc_fail(RWKVC_E_FORMAT, "tensor %u: its name does not end", i);
    if (i < n_model) {
        rwkvc_status status = rwkvc_config_tensor(config, i, info);
        if (status) return status;
        if (entry->kind != info->kind || entry->rows != info->rows || entry->cols != info->cols ||
            strcmp(entry->name, info->name) != 0)
            return rwkvc_fail(
                RWKVC_E_SHAPE, "tensor %u is %s, kind %u, [%llu, %llu]; expected %s, kind %u, [%llu, %llu]", i,
                entry->name, entry->kind, (unsigned long long)entry->rows, (unsigned long long)entry->cols, info->name,
                info->kind, (unsigned long long)info->rows, (unsigned long long)info->cols);
    } else {
        memset(info, 0, sizeof *info);
        memcpy(info->name, entry->name, NAME_BYTES);
        memcpy(info->source, entry->name, NAME_BYTES);
        if (entry->kind != RWKVC_KIND_BYTES || entry->rows != 1)
            return rwkvc_fail(RWKVC_E_FORMAT, "tensor %u (%s) is unknown", i, entry->name);
        info->kind = entry->kind;
        info->layer = (uint32_t)RWKVC_NO_LAYER;
        info->rows = 1;
        info->cols = info->shape[0] = entry->cols;
        info->n_dims = 1;
    }
    info->format = entry->format;
    info->offset = entry->offset;
    info->size_bytes = entry->size_bytes;
    info->crc32 = entry->crc32;
    uint64_t expected = rwkvc_packed_bytes(info->kind, info->format, info->rows, info->cols);
    if (expected == 0)
        return rwkvc_fail(RWKVC_E_UNSUPPORTED, "%s: format %u is unknown to this engine", info->name, info->format);
    if (info->size_bytes != expected || info->offset != *offset || expected > data_bytes - *offset)
        return rwkvc_fail(RWKVC_E_FORMAT, "%s: %llu bytes at %llu, expected %llu at %llu", info->name,
                          (unsigned long long)info->size_bytes, (unsigned long long)info->offset,
                          (unsigned long long)expected, (unsigned long long)*offset);
    *offset += expected;
    return RWKVC_OK;
}

static rwkvc_status check_entries(rwkvc_model *model, const table_head *head) {
    uint32_t n_model = rwkvc_config_tensors(&model->config);
    if (head->n_tensors < n_model)
        return rwkvc_fail(RWKVC_E_FORMAT, "%u tensors, a model of this version has %u", head->n_tensors, n_model);
    if (head->n_tensors > n_model + MAX_BYTES_TENSORS)
        return rwkvc_fail(RWKVC_E_FORMAT, "%u tensors, a model of this version has %u", head->n_tensors, n_model);
    model->infos = rwkvc_alloc(sizeof *model->infos * head->n_tensors);
    if (!model->infos) return rwkvc_fail(RWKVC_E_NOMEM, "out of memory for %u tensors", head->n_tensors);
    model->n_infos = head->n_tensors;
    uint64_t offset = rwkvc_table_bytes(head->n_tensors);
    for (uint32_t i = 0; i < head->n_tensors; i++) {
        table_entry entry;
        memcpy(&entry, model->data + HEAD_BYTES + (uint64_t)i * ENTRY_BYTES, sizeof entry);
        rwkvc_status status =
            check_entry(&model->config, n_model, i, &entry, &offset, head->data_bytes, &model->infos[i]);
        if (status) return status;
        for (uint32_t j = 0; i >= n_model && j < i; j++)
            if (strcmp(model->infos[j].name, model->infos[i].name) == 0)
                return rwkvc_fail(RWKVC_E_FORMAT, "%s stands in the file twice", model->infos[i].name);
    }
    if (offset != head->data_bytes)
        return rwkvc_fail(RWKVC_E_FORMAT, "%llu bytes behind the last tensor",
                          (unsigned long long)(head->data_bytes - offset));
    return RWKVC_OK;
}

/* ------------------------------------------------------------------------------------- binding */

static uint32_t spec_of(const rwkvc_arch *arch, const rwkvc_tensor_info *info) {
    const char *name = info->name;
    if (info->layer != (uint32_t)RWKVC_NO_LAYER) name = strchr(name + strlen("blocks."), '.') + 1;
    for (uint32_t s = 0; s < arch->n_specs; s++)
        if ((arch->specs[s].place == PLACE_BEGIN || arch->specs[s].place == PLACE_END) ==
                (info->layer == (uint32_t)RWKVC_NO_LAYER) &&
            strcmp(arch->specs[s].name, name) == 0)
            return s;
    return 0;
}

static rwkvc_status bind(rwkvc_model *model) {
    model->tensors = rwkvc_alloc(sizeof *model->tensors * model->config.n_layer * model->arch->n_specs);
    if (!model->tensors)
        return rwkvc_fail(RWKVC_E_NOMEM, "out of memory for the tensors of %u layers", model->config.n_layer);
    uint32_t n_model = rwkvc_config_tensors(&model->config);
    for (uint32_t i = 0; i < n_model; i++) {
        const rwkvc_tensor_info *info = &model->infos[i];
        uint32_t row = info->layer == (uint32_t)RWKVC_NO_LAYER ? 0 : info->layer;
        uint32_t bits = rwkvc_bits(info->format), cols = (uint32_t)info->cols;
        const uint8_t *data = model->data + info->offset;
        model->tensors[(uint64_t)row * model->arch->n_specs + spec_of(model->arch, info)] =
            (rwkvc_tensor){.data = data + rwkvc_header_bytes(bits),
                           .book = bits == 4 ? data : NULL,
                           .kind = info->kind,
                           .format = info->format,
                           .rows = (uint32_t)info->rows,
                           .cols = cols};
        uint32_t *widest = info->kind == RWKVC_KIND_VALUE ? &model->widest_value : &model->widest_matrix;
        if (bits && info->kind != RWKVC_KIND_EMBEDDING && cols > *widest) *widest = cols;
        model->token_bytes += info->kind == RWKVC_KIND_EMBEDDING ? info->size_bytes / info->rows : info->size_bytes;
    }
    return RWKVC_OK;
}

rwkvc_status rwkvc_model_open(const void *bytes, uint64_t size_bytes, rwkvc_model **out) {
    table_head head;
    *out = NULL;
    rwkvc_model *model = rwkvc_alloc(sizeof *model);
    if (!model) return rwkvc_fail(RWKVC_E_NOMEM, "out of memory");
    model->file = (rwkvc_mapping){bytes, size_bytes};
    rwkvc_status status = check_head(bytes, size_bytes, &model->data, &head);
    if (!status) {
        model->data_bytes = head.data_bytes;
        model->config = head.config;
        model->config.source = 0;
        model->arch = rwkvc_arch_get(head.config.version);
        status = rwkvc_config_check(&model->config);
    }
    if (!status &&
        !(head.config.ln_eps > 0 && head.config.ln_eps < 1 && head.config.gn_eps > 0 && head.config.gn_eps < 1))
        status = rwkvc_fail(RWKVC_E_FORMAT, "the norms' epsilons %g and %g make no sense", (double)head.config.ln_eps,
                            (double)head.config.gn_eps);
    if (!status) status = check_entries(model, &head);
    if (!status) status = bind(model);
    if (status) {
        rwkvc_model_close(model);
        return status;
    }
    *out = model;
    return RWKVC_OK;
}

rwkvc_status rwkvc_model_open_file(const char *path, rwkvc_model **model) {
    if (!path || !model) return rwkvc_fail(RWKVC_E_ARGUMENT, "no path, or nowhere to put the model");
    *model = NULL;
    rwkvc_mapping mapping;
    char reason[256];
    rwkvc_status status = rwkvc_map_file(path, &mapping, reason, sizeof reason);
    if (status) return rwkvc_fail(status, "%s: cannot be opened: %s", path, reason);
    status = rwkvc_model_open(mapping.bytes, mapping.size_bytes, model);
    if (status) {
        rwkvc_unmap_file(&mapping);
        return rwkvc_fail_at(path, status);
    }
    (*model)->owns_file = true;
    return RWKVC_OK;
}

const void *rwkvc_model_file(const rwkvc_model *model, uint64_t *size_bytes) {
    *size_bytes = model->file.size_bytes;
    return model->file.bytes;
}

void rwkvc_model_close(rwkvc_model *model) {
    if (!model) return;
    if (model->owns_file) rwkvc_unmap_file(&model->file);
    rwkvc_free(model->tensors);
    rwkvc_free(model->infos);
    rwkvc_free(model);
}

void rwkvc_model_config(const rwkvc_model *model, rwkvc_config *config) { *config = model->config; }

uint32_t rwkvc_model_tensors(const rwkvc_model *model) { return model->n_infos; }

rwkvc_status rwkvc_model_tensor(const rwkvc_model *model, uint32_t i, rwkvc_tensor_info *info) {
    if (i >= model->n_infos) return rwkvc_fail(RWKVC_E_ARGUMENT, "no tensor number %u", i);
    *info = model->infos[i];
    return RWKVC_OK;
}

const void *rwkvc_model_bytes(const rwkvc_model *model, const char *name, uint64_t *size_bytes) {
    for (uint32_t i = 0; i < model->n_infos; i++) {
        const rwkvc_tensor_info *info = &model->infos[i];
        if (strcmp(info->name, name) != 0) continue;
        *size_bytes = info->kind == RWKVC_KIND_BYTES ? info->cols : info->size_bytes;
        return model->data + info->offset;
    }
    *size_bytes = 0;
    return NULL;
}

uint64_t rwkvc_model_token_bytes(const rwkvc_model *model) { return model->token_bytes; }
