/* SPDX-License-Identifier: Apache-2.0
 *
 * The World tokenizer: greedy longest match, byte by byte, over some 65,000 byte strings. The vocabulary
 * travels inside model files, so its text is untrusted input; after creation nothing changes any more and
 * any number of threads may use one tokenizer.
 */
#include <stdlib.h>
#include <string.h>

#include "internal.h"
#include "rwkv_cpu.h"

/* The longest token of the released vocabulary has 128 bytes. The bound keeps the walk from any one text
 * position short, whatever a file says. */
#define MAX_TOKEN_BYTES 255u
#define MAX_ID 0xfffffu
#define MAX_VOCABULARY_BYTES (64u << 20)
#define NARROW 4u /* children whose bytes fit into the node itself */

struct node {
    uint32_t first;      /* its children are neighbours in nodes[], in the order of their bytes */
    uint32_t n_children; /* 0..256 */
    uint32_t id;         /* the token that ends here; 0: none, as id 0 is never text */
    uint32_t labels;     /* up to NARROW children: their bytes, first one lowest; else an index into wide[] */
};

/* Which bytes a node with many children has: a child's place is the number of set bits before its own. */
struct wide {
    uint64_t has[4];
    uint32_t before[4]; /* bits set in the words before this one */
};

struct piece {
    uint32_t offset;     /* into bytes[] */
    uint32_t size_bytes; /* 0: no such token */
};

struct rwkvc_world {
    uint32_t n_vocab;
    struct node *nodes; /* nodes[0] is the root, so that 0 can mean "no child" */
    struct wide *wide;
    struct piece *pieces; /* [n_vocab], by id */
    uint8_t *bytes;
    uint32_t root[256]; /* the root's children by byte */
};

/* ------------------------------------------------------------------------------- the text of a vocabulary */

struct token {
    uint32_t id, offset, size_bytes, line;
};

struct parsed {
    struct token *tokens;
    uint32_t n;
    uint32_t max_id;
    uint8_t *bytes;
    uint32_t n_bytes;
};

struct cursor {
    const uint8_t *at, *end;
};

static int32_t hex_digit(uint8_t c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

/* `digits` hexadecimal digits; -1 if there are fewer. */
static int64_t read_hex(struct cursor *in, uint32_t digits) {
    int64_t value = 0;
    for (uint32_t i = 0; i < digits; i++) {
        int32_t digit = in->at < in->end ? hex_digit(*in->at) : -1;
        if (digit < 0) return -1;
        value = value * 16 + digit;
        in->at++;
    }
    return value;
}

/* A decimal number up to `max`; -1 if there is none, or it is larger. */
static int64_t read_number(struct cursor *in, int64_t max) {
    const uint8_t *start = in->at;
    int64_t value = 0;
    while (in->at < in->end && *in->at >= '0' && *in->at <= '9') {
        value = value * 10 + (*in->at - '0');
        if (value > max) return -1;
        in->at++;
    }
    return in->at == start ? -1 : value;
}

/* Bytes written: 1 to 4. */
static uint32_t write_utf8(uint32_t c, uint8_t *out) {
    if (c < 0x80) {
        out[0] = (uint8_t)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (uint8_t)(0xc0 | c >> 6);
        out[1] = (uint8_t)(0x80 | (c & 0x3f));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (uint8_t)(0xe0 | c >> 12);
        out[1] = (uint8_t)(0x80 | (c >> 6 & 0x3f));
        out[2] = (uint8_t)(0x80 | (c & 0x3f));
        return 3;
    }
    out[0] = (uint8_t)(0xf0 | c >> 18);
    out[1] = (uint8_t)(0x80 | (c >> 12 & 0x3f));
    out[2] = (uint8_t)(0x80 | (c >> 6 & 0x3f));
    out[3] = (uint8_t)(0x80 | (c & 0x3f));
    return 4;
}

/* One escape sequence, after its backslash. NULL, or what is wrong with it. */
static const char *read_escape(struct cursor *in, int32_t is_bytes, uint8_t *out, uint32_t *written) {
    uint8_t kind = in->at < in->end ? *in->at++ : 0;
    int64_t c = -1;
    switch (kind) {
    case 'n': c = '\n'; break;
    case 't': c = '\t'; break;
    case 'r': c = '\r'; break;
    case '\\':
    case '\'':
    case '"': c = kind; break;
    case 'x':
        c = read_hex(in, 2);
        if (c >= 0 && is_bytes) {
            out[0] = (uint8_t)c;
            *written = 1;
            return NULL;
        }
        break;
    case 'u': c = is_bytes ? -1 : read_hex(in, 4); break;
    case 'U': c = is_bytes ? -1 : read_hex(in, 8); break;
    default: break;
    }
    if (c < 0) return "an unknown or incomplete escape sequence";
    if (c > 0x10ffff || (c >= 0xd800 && c <= 0xdfff)) return "an escape sequence that is no Unicode character";
    *written = write_utf8((uint32_t)c, out);
    return NULL;
}

/* A Python literal '…', "…", b'…' or b"…" that fills the cursor to its end, as bytes (text as UTF-8). Never
 * writes more bytes than it reads. NULL, or what is wrong with it. */
static const char *read_literal(struct cursor *in, uint8_t *out, uint32_t *size_bytes) {
    int32_t is_bytes = in->at < in->end && *in->at == 'b';
    uint32_t n = 0;
    if (is_bytes) in->at++;
    if (in->end - in->at < 2 || (*in->at != '\'' && *in->at != '"')) return "no quoted literal";
    uint8_t quote = *in->at++;
    const uint8_t *end = in->end - 1;
    if (*end != quote) return "a literal without its closing quote";
    struct cursor text = {in->at, end};
    while (text.at < text.end) {
        uint8_t c = *text.at++;
        if (c == quote) return "a quote inside the literal";
        if (c == '\\') {
            uint32_t written = 0;
            const char *wrong = read_escape(&text, is_bytes, out + n, &written);
            if (wrong) return wrong;
            n += written;
        } else {
            if (is_bytes && c >= 0x80) return "a byte literal with a character outside ASCII";
            out[n++] = c;
        }
    }
    *size_bytes = n;
    return NULL;
}

static rwkvc_status bad_line(uint32_t line, const char *why) {
    return rwkvc_fail(RWKVC_E_FORMAT, "vocabulary, line %u: %s", (unsigned)line, why);
}

/* "id literal length": the literal lies between the first space and the last, and may hold spaces itself. */
static rwkvc_status parse_line(struct parsed *p, struct cursor text, uint32_t line) {
    struct token *token = &p->tokens[p->n];
    int64_t id = read_number(&text, MAX_ID);
    if (id < 0) return bad_line(line, "no token id, or one above 1048575");
    if (id == 0) return bad_line(line, "id 0 means end of text and cannot be a token");
    if (text.at == text.end || *text.at++ != ' ') return bad_line(line, "no space after the id");

    const uint8_t *last = text.end;
    while (last > text.at && last[-1] != ' ') last--;
    if (last == text.at) return bad_line(line, "no literal and length after the id");
    struct cursor length = {last, text.end}, literal = {text.at, last - 1};
    int64_t expected = read_number(&length, MAX_TOKEN_BYTES);
    if (expected < 1 || length.at != length.end) return bad_line(line, "the length is not a number from 1 to 255");

    uint32_t size_bytes = 0;
    const char *wrong = read_literal(&literal, p->bytes + p->n_bytes, &size_bytes);
    if (wrong) return bad_line(line, wrong);
    if (size_bytes != (uint32_t)expected)
        return rwkvc_fail(RWKVC_E_FORMAT, "vocabulary, line %u: the literal has %u bytes, the line says %u",
                          (unsigned)line, (unsigned)size_bytes, (unsigned)expected);
    token->id = (uint32_t)id;
    token->offset = p->n_bytes;
    token->size_bytes = size_bytes;
    token->line = line;
    p->n++;
    p->n_bytes += size_bytes;
    if (token->id > p->max_id) p->max_id = token->id;
    return RWKVC_OK;
}

static rwkvc_status parse_vocabulary(struct parsed *p, const uint8_t *text, uint32_t size_bytes) {
    uint32_t n_lines = 1;
    for (uint32_t i = 0; i < size_bytes; i++) n_lines += text[i] == '\n';
    p->tokens = malloc(n_lines * sizeof *p->tokens);
    p->bytes = malloc(size_bytes);
    if (!p->tokens || !p->bytes)
        return rwkvc_fail(RWKVC_E_NOMEM, "no memory for a vocabulary of %u lines", (unsigned)n_lines);

    const uint8_t *at = text, *end = text + size_bytes;
    for (uint32_t line = 1; at < end; line++) {
        const uint8_t *newline = memchr(at, '\n', (size_t)(end - at));
        struct cursor one = {at, newline ? newline : end};
        at = newline ? newline + 1 : end;
        if (one.end > one.at && one.end[-1] == '\r') one.end--;
        rwkvc_status status = parse_line(p, one, line);
        if (status != RWKVC_OK) return status;
    }
    return RWKVC_OK;
}

/* --------------------------------------------------------------------------------------------- the trie */

/* A trie under construction: breadth first, so that the children of a node are neighbours. A node stands for
 * the tokens order[from..to) that share its bytes. */
struct builder {
    const struct parsed *parsed;
    uint32_t *order, *spare; /* [n tokens] */
    struct node *nodes;      /* [most nodes] */
    uint32_t *from, *to;     /* [most nodes] */
    uint8_t *label;          /* [most nodes] the byte that leads to a node */
    uint32_t n_nodes;
};

/* What tokens are sorted by at a depth: 0 for one that ends there, else its next byte + 1. */
static uint32_t sort_key(const struct builder *b, uint32_t i, uint32_t depth) {
    const struct token *token = &b->parsed->tokens[i];
    return token->size_bytes == depth ? 0 : b->parsed->bytes[token->offset + depth] + 1u;
}

/* Stable, so that of two equal tokens the later line is the one reported. */
static void sort_tokens(struct builder *b, uint32_t from, uint32_t to, uint32_t depth) {
    uint32_t *order = b->order;
    if (to - from <= 16) {
        for (uint32_t i = from + 1; i < to; i++) {
            uint32_t moved = order[i], key = sort_key(b, moved, depth), j = i;
            for (; j > from && sort_key(b, order[j - 1], depth) > key; j--) order[j] = order[j - 1];
            order[j] = moved;
        }
        return;
    }
    uint32_t place[258] = {0};
    for (uint32_t i = from; i < to; i++) place[sort_key(b, order[i], depth) + 1]++;
    for (uint32_t k = 1; k < 258; k++) place[k] += place[k - 1];
    for (uint32_t i = from; i < to; i++) b->spare[place[sort_key(b, order[i], depth)]++] = order[i];
    memcpy(order + from, b->spare, (to - from) * sizeof *order);
}

static void add_node(struct builder *b, uint32_t from, uint8_t label) {
    memset(&b->nodes[b->n_nodes], 0, sizeof b->nodes[0]);
    b->from[b->n_nodes] = from;
    b->to[b->n_nodes] = from;
    b->label[b->n_nodes] = label;
    b->n_nodes++;
}

/* Give node `i`, `depth` bytes deep, its token and its children. */
static rwkvc_status split_node(struct builder *b, uint32_t i, uint32_t depth) {
    const struct token *tokens = b->parsed->tokens;
    struct node *node = &b->nodes[i];
    uint32_t at = b->from[i], to = b->to[i];
    sort_tokens(b, at, to, depth);
    for (; at < to && sort_key(b, b->order[at], depth) == 0; at++) {
        const struct token *token = &tokens[b->order[at]];
        if (node->id)
            return rwkvc_fail(RWKVC_E_FORMAT, "vocabulary, line %u: the same bytes as id %u", (unsigned)token->line,
                              (unsigned)node->id);
        node->id = token->id;
    }
    node->first = b->n_nodes;
    uint32_t last_key = 0;
    for (; at < to; at++) {
        uint32_t key = sort_key(b, b->order[at], depth);
        if (key != last_key) add_node(b, at, (uint8_t)(key - 1));
        b->to[b->n_nodes - 1] = at + 1;
        last_key = key;
    }
    node->n_children = b->n_nodes - node->first;
    return RWKVC_OK;
}

static rwkvc_status grow_trie(struct builder *b) {
    uint32_t n = b->parsed->n;
    for (uint32_t i = 0; i < n; i++) b->order[i] = i;
    add_node(b, 0, 0);
    b->to[0] = n;
    uint32_t level_end = 1;
    for (uint32_t i = 0, depth = 0; i < b->n_nodes; i++) {
        if (i == level_end) {
            depth++;
            level_end = b->n_nodes;
        }
        rwkvc_status status = split_node(b, i, depth);
        if (status != RWKVC_OK) return status;
    }
    return RWKVC_OK;
}

static uint32_t count_bits(uint64_t x) {
    x -= x >> 1 & 0x5555555555555555u;
    x = (x & 0x3333333333333333u) + (x >> 2 & 0x3333333333333333u);
    x = (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fu;
    return (uint32_t)(x * 0x0101010101010101u >> 56);
}

static void fill_wide(struct wide *wide, const uint8_t *labels, uint32_t n) {
    memset(wide, 0, sizeof *wide);
    for (uint32_t i = 0; i < n; i++) wide->has[labels[i] >> 6] |= (uint64_t)1 << (labels[i] & 63);
    for (uint32_t i = 1; i < 4; i++) wide->before[i] = wide->before[i - 1] + count_bits(wide->has[i - 1]);
}

/* Write how each node finds its children. */
static rwkvc_status label_nodes(struct rwkvc_world *w, const struct builder *b) {
    uint32_t n_wide = 0;
    for (uint32_t i = 0; i < b->n_nodes; i++) n_wide += b->nodes[i].n_children > NARROW;
    w->wide = malloc((n_wide + 1) * sizeof *w->wide);
    if (!w->wide) return rwkvc_fail(RWKVC_E_NOMEM, "no memory for the tokenizer's trie");
    n_wide = 0;
    for (uint32_t i = 0; i < b->n_nodes; i++) {
        struct node *node = &b->nodes[i];
        const uint8_t *labels = b->label + node->first;
        if (node->n_children > NARROW) {
            fill_wide(&w->wide[n_wide], labels, node->n_children);
            node->labels = n_wide++;
        } else {
            for (uint32_t j = 0; j < node->n_children; j++) node->labels |= (uint32_t)labels[j] << 8 * j;
        }
    }
    for (uint32_t j = 0; j < b->nodes[0].n_children; j++)
        w->root[b->label[b->nodes[0].first + j]] = b->nodes[0].first + j;
    return RWKVC_OK;
}

static rwkvc_status build_trie(struct rwkvc_world *w, const struct parsed *p) {
    size_t most = (size_t)p->n_bytes + 1;
    struct builder b = {.parsed = p};
    rwkvc_status status;
    b.order = malloc(p->n * sizeof *b.order);
    b.spare = malloc(p->n * sizeof *b.spare);
    b.nodes = malloc(most * sizeof *b.nodes);
    b.from = malloc(most * sizeof *b.from);
    b.to = malloc(most * sizeof *b.to);
    b.label = malloc(most * sizeof *b.label);
    if (b.order && b.spare && b.nodes && b.from && b.to && b.label) {
        status = grow_trie(&b);
        if (status == RWKVC_OK) status = label_nodes(w, &b);
    } else {
        status = rwkvc_fail(RWKVC_E_NOMEM, "no memory for the tokenizer's trie");
    }
    free(b.order);
    free(b.spare);
    free(b.from);
    free(b.to);
    free(b.label);
    struct node *fitted = status == RWKVC_OK ? realloc(b.nodes, b.n_nodes * sizeof *b.nodes) : NULL;
    w->nodes = fitted ? fitted : b.nodes;
    return status;
}

/* ------------------------------------------------------------------------------------------------ public */

static rwkvc_status index_pieces(struct rwkvc_world *w, const struct parsed *p) {
    w->n_vocab = p->max_id + 1;
    w->pieces = calloc(w->n_vocab, sizeof *w->pieces);
    if (!w->pieces) return rwkvc_fail(RWKVC_E_NOMEM, "no memory for a vocabulary of %u tokens", (unsigned)w->n_vocab);
    for (uint32_t i = 0; i < p->n; i++) {
        const struct token *token = &p->tokens[i];
        struct piece *piece = &w->pieces[token->id];
        if (piece->size_bytes)
            return rwkvc_fail(RWKVC_E_FORMAT, "vocabulary, line %u: id %u a second time", (unsigned)token->line,
                              (unsigned)token->id);
        piece->offset = token->offset;
        piece->size_bytes = token->size_bytes;
    }
    return RWKVC_OK;
}

rwkvc_status rwkvc_world_create(const uint8_t *vocabulary, uint64_t size_bytes, rwkvc_world **tokenizer) {
    if (!tokenizer || !vocabulary)
        return rwkvc_fail(RWKVC_E_ARGUMENT, "no vocabulary, or nowhere to put the tokenizer");
    *tokenizer = NULL;
    if (size_bytes == 0) return rwkvc_fail(RWKVC_E_FORMAT, "the vocabulary is empty");
    if (size_bytes > MAX_VOCABULARY_BYTES)
        return rwkvc_fail(RWKVC_E_FORMAT, "a vocabulary of %llu bytes; 64 MiB is the most",
                          (unsigned long long)size_bytes);
    struct rwkvc_world *w = calloc(1, sizeof *w);
    if (!w) return rwkvc_fail(RWKVC_E_NOMEM, "no memory for a tokenizer");

    struct parsed p = {0};
    rwkvc_status status = parse_vocabulary(&p, vocabulary, (uint32_t)size_bytes);
    if (status == RWKVC_OK) status = index_pieces(w, &p);
    if (status == RWKVC_OK) status = build_trie(w, &p);
    free(p.tokens);
    uint8_t *fitted = status == RWKVC_OK ? realloc(p.bytes, p.n_bytes) : NULL;
    w->bytes = fitted ? fitted : p.bytes;
    if (status != RWKVC_OK) {
        rwkvc_world_destroy(w);
        return status;
    }
    *tokenizer = w;
    return RWKVC_OK;
}

rwkvc_status rwkvc_world_open(const rwkvc_model *model, rwkvc_world **tokenizer) {
    uint64_t size;
    if (!model || !tokenizer) return rwkvc_fail(RWKVC_E_ARGUMENT, "no model, or nowhere to put the tokenizer");
    *tokenizer = NULL;
    const uint8_t *vocabulary = rwkvc_model_bytes(model, "tokenizer.world", &size);
    if (vocabulary) return rwkvc_world_create(vocabulary, size, tokenizer);
    const char *other = rwkvc_model_bytes(model, "tokenizer.sentencepiece", &size) ? "tokenizer.sentencepiece"
                        : rwkvc_model_bytes(model, "tokenizer.huggingface", &size) ? "tokenizer.huggingface"
                                                                                   : NULL;
    if (other)
        return rwkvc_fail_hint(RWKVC_E_UNSUPPORTED, "Hand its bytes (rwkvc_model_bytes) to that tokenizer's library.",
                               "the model has no World vocabulary but %s", other);
    return rwkvc_fail_hint(RWKVC_E_UNSUPPORTED, "Convert the checkpoint with --tokenizer, or work with token ids.",
                           "the model file has no tokenizer");
}

void rwkvc_world_destroy(rwkvc_world *tokenizer) {
    if (!tokenizer) return;
    free(tokenizer->nodes);
    free(tokenizer->wide);
    free(tokenizer->pieces);
    free(tokenizer->bytes);
    free(tokenizer);
}

uint32_t rwkvc_world_vocab(const rwkvc_world *tokenizer) { return tokenizer->n_vocab; }

/* The child that `byte` leads to; 0 if there is none. */
static uint32_t find_child(const struct rwkvc_world *w, const struct node *node, uint8_t byte) {
    if (node->n_children <= NARROW) {
        for (uint32_t i = 0, labels = node->labels; i < node->n_children; i++, labels >>= 8)
            if ((labels & 0xff) == byte) return node->first + i;
        return 0;
    }
    const struct wide *wide = &w->wide[node->labels];
    uint64_t word = wide->has[byte >> 6], bit = (uint64_t)1 << (byte & 63);
    if (!(word & bit)) return 0;
    return node->first + wide->before[byte >> 6] + count_bits(word & (bit - 1));
}

rwkvc_status rwkvc_world_encode(const rwkvc_world *tokenizer, const uint8_t *text, uint64_t size_bytes, uint32_t *ids,
                                uint64_t room, uint64_t *n_ids) {
    if (!tokenizer || !n_ids || (!text && size_bytes) || (!ids && room))
        return rwkvc_fail(RWKVC_E_ARGUMENT, "no tokenizer, no text, or nowhere to put the ids");
    uint64_t n = 0;
    *n_ids = 0;
    for (uint64_t start = 0; start < size_bytes;) {
        uint32_t id = 0, at = tokenizer->root[text[start]];
        uint64_t end = start, next = start + 1;
        while (at) {
            const struct node *node = &tokenizer->nodes[at];
            if (node->id) {
                id = node->id;
                end = next;
            }
            if (next == size_bytes) break;
            at = find_child(tokenizer, node, text[next++]);
        }
        if (!id)
            return rwkvc_fail(RWKVC_E_TOKEN, "no token of the vocabulary covers byte 0x%02x at offset %llu",
                              text[start], (unsigned long long)start);
        if (n < room) ids[n] = id;
        n++;
        start = end;
    }
    *n_ids = n;
    return RWKVC_OK;
}

rwkvc_status rwkvc_world_bytes(const rwkvc_world *tokenizer, uint32_t id, const uint8_t **bytes, uint64_t *size_bytes) {
    if (!tokenizer || !bytes || !size_bytes)
        return rwkvc_fail(RWKVC_E_ARGUMENT, "no tokenizer, or nowhere to put the bytes");
    *bytes = tokenizer->bytes;
    *size_bytes = 0;
    if (id == 0) return RWKVC_OK;
    if (id >= tokenizer->n_vocab || tokenizer->pieces[id].size_bytes == 0)
        return rwkvc_fail(RWKVC_E_TOKEN, "token %u is not in the vocabulary of %u", (unsigned)id,
                          (unsigned)tokenizer->n_vocab);
    *bytes = tokenizer->bytes + tokenizer->pieces[id].offset;
    *size_bytes = tokenizer->pieces[id].size_bytes;
    return RWKVC_OK;
}
