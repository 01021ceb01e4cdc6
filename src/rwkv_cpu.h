/* SPDX-License-Identifier: Apache-2.0
 *
 * rwkv_cpu: RWKV language models on an ordinary CPU. The one public header; cffi reads the part
 * between the cdef markers, so only plain declarations and integer #defines stand there.
 *
 * Conventions
 * - Every function that can fail returns a status; rwkvc_last_error() has the text, per thread.
 * - The library never prints, never exits and installs no signal handler. Paths and texts are UTF-8, on Windows too.
 * - NULL may be given to every _destroy and _close, and where it says so.
 * - A model is read-only and may be shared by threads. A context serves one call at a time.
 * - Options begin with struct_size = sizeof of the struct the caller was compiled with; 0 is an error.
 * - Shapes are row-major; sizes are elements unless the name says _bytes.
 * - Same bits for any number of threads, any chunking, any batch and any instruction set.
 */
#ifndef RWKV_CPU_H
#define RWKV_CPU_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#pragma GCC visibility push(default)
#endif

/* cdef: begin */

#define RWKVC_ABI_VERSION 2
/* The .rwkv format this engine writes; it reads this one and every older one. */
#define RWKVC_FILE_VERSION 2
#define RWKVC_MAX_DIMS 4
#define RWKVC_MAX_NAME 96
#define RWKVC_MAX_SIZES 16
#define RWKVC_MAX_STATE_PARTS 8

/* ------------------------------------------------------------------------------------ status */

typedef int32_t rwkvc_status;
#define RWKVC_OK 0
#define RWKVC_E_ARGUMENT 1    /* a call that breaks this header's rules */
#define RWKVC_E_FORMAT 2      /* damaged or foreign file */
#define RWKVC_E_UNSUPPORTED 3 /* understood, but not something this engine runs */
#define RWKVC_E_SHAPE 4       /* a tensor is missing or its shape does not fit the version's table */
#define RWKVC_E_TOKEN 5       /* a token id outside the vocabulary, or no token at all */
#define RWKVC_E_STATE 6       /* a state of another model, or one with NaN or Inf (for hosts that keep states) */
#define RWKVC_E_NONFINITE 7   /* NaN or Inf in weights, or in a result */
#define RWKVC_E_NOMEM 8       /* out of memory */
#define RWKVC_E_CANCELLED 9   /* the cancel flag was set */
#define RWKVC_E_FORKED 10     /* a context used in a child of the process that made it */
#define RWKVC_E_NOT_FOUND 11  /* no file at that path */
#define RWKVC_E_IO 12         /* a file that cannot be opened, read, mapped or written, or is not an ordinary one */

/* RWKVC_ABI_VERSION of the library that runs: the program's own must be the same. */
uint32_t rwkvc_abi_version(void);
/* "0.1.0": the version of the package this engine was built from. */
const char *rwkvc_version(void);
/* Text of this thread's last failure; "" if none. Valid until the thread's next call. */
const char *rwkvc_last_error(void);
/* What to do about it, a sentence or two; "" if there is nothing to say. */
const char *rwkvc_last_hint(void);
/* "RWKVC_E_FORMAT"; NULL for a number that is no status. */
const char *rwkvc_status_name(rwkvc_status status);

/* ----------------------------------------------------------------- instruction sets, hardware */

/* Instruction sets compiled in, best first: "avx512vnni", "avxvnni", "avx2", "scalar", or on 64-bit ARM "neon_i8mm",
 * "neon_dotprod", "neon", "scalar". NULL past the end. */
const char *rwkvc_isa_name(uint32_t i);
/* 1 if this CPU and its system can run it. */
int32_t rwkvc_isa_usable(const char *name);
/* What the instruction set needs from the CPU, for people: "AVX-512 F, BW, VL, VNNI". */
const char *rwkvc_isa_needs(const char *name);
/* The one contexts use when none is asked for: the best usable, or RWKV_CPU_ISA of the environment.
 * E_UNSUPPORTED (and NULL) when RWKV_CPU_ISA names one that is unknown or not usable here. */
rwkvc_status rwkvc_isa_default(const char **name);
#define RWKVC_MAX_THREADS 256 /* of a context */
/* Physical cores this process may use (affinity, cgroup quota; threads of one core count once), at least 1. */
uint32_t rwkvc_default_threads(void);
/* Let all other threads go before the calling one, for good: nice + 10 (Linux), QOS_CLASS_UTILITY (macOS), below normal
 * (Windows). A context made in such a thread has such workers, so a host that computes beside more urgent things makes
 * and uses its context in a thread that called this. 0 where the system refuses. */
int32_t rwkvc_lower_priority(void);

/* ------------------------------------------------------------------- what a version is made of */

/* Version numbers: major << 8 | minor. 5.0 has no gate, 5.1 one decay a head, 5.2 one a channel. */
#define RWKVC_RWKV4 0x400
#define RWKVC_RWKV5_0 0x500
#define RWKVC_RWKV5_1 0x501
#define RWKVC_RWKV5_2 0x502
#define RWKVC_RWKV6 0x600
#define RWKVC_RWKV7 0x700
#define RWKVC_RWKV7A 0x70a /* 7 with DeepEmbed */

/* The symbols that tensor shapes are written in; rwkvc_config.size[] is indexed by them. */
#define RWKVC_SIZE_ONE 0
#define RWKVC_SIZE_VOCAB 1    /* V, n_vocab */
#define RWKVC_SIZE_EMBD 2     /* C, n_embd */
#define RWKVC_SIZE_ATT 3      /* A, attention width = n_head * head_size */
#define RWKVC_SIZE_FFN 4      /* F, width of the channel mix */
#define RWKVC_SIZE_HEADS 5    /* H, n_head */
#define RWKVC_SIZE_HEAD 6     /* N, head_size */
#define RWKVC_SIZE_RANK_W 7   /* ranks of the low-rank pairs: decay (6, 7), */
#define RWKVC_SIZE_RANK_A 8   /* in-context learning rate (7), */
#define RWKVC_SIZE_RANK_V 9   /* value residual (7), */
#define RWKVC_SIZE_RANK_G 10  /* gate (7), */
#define RWKVC_SIZE_RANK_M 11  /* token shift (6), */
#define RWKVC_SIZE_RANK_M5 12 /* five times that: all five blends, */
#define RWKVC_SIZE_RANK_S 13  /* DeepEmbed (7a), */
#define RWKVC_SIZE_RANK_SS 14 /* and its square */
#define RWKVC_SIZE_FIVE 15    /* the constant */

typedef struct {
    uint32_t version; /* RWKVC_RWKV7 */
    uint32_t n_layer;
    uint32_t size[RWKVC_MAX_SIZES]; /* by RWKVC_SIZE_*; 0 where the version has none */
    float ln_eps;                   /* layer norm */
    float gn_eps;                   /* group norm after the recurrence */
    uint32_t source;                /* which of several names the checkpoint uses; 0 in a model file */
} rwkvc_config;

/* A tensor as a checkpoint has it, BlinkDL names. */
typedef struct {
    const char *name;
    uint32_t n_dims;
    uint64_t shape[RWKVC_MAX_DIMS];
} rwkvc_named_shape;

/* How a tensor is used, which decides how it is stored. */
#define RWKVC_KIND_VECTOR 0    /* f32 always */
#define RWKVC_KIND_MATRIX 1    /* panels of 16 rows */
#define RWKVC_KIND_LOW_RANK 2  /* panels of 16 rows; f32, f16, or q8 in files of integers */
#define RWKVC_KIND_VALUE 3     /* channel mix value: column panels, so that zero inputs are not read */
#define RWKVC_KIND_EMBEDDING 4 /* rows, looked up */
#define RWKVC_KIND_HEAD 5      /* as MATRIX; its input is kept in 16 bits where weights are integers */
#define RWKVC_KIND_BYTES 6     /* tokenizer, chat template */

#define RWKVC_FORMAT_F32 0
#define RWKVC_FORMAT_F16 1
#define RWKVC_FORMAT_Q8 2 /* 8.5 bits per weight: integers in groups of 32 inputs with an f16 scale */
#define RWKVC_FORMAT_Q6 3 /* 6.5 */
#define RWKVC_FORMAT_Q5 4 /* 5.5 */
#define RWKVC_FORMAT_Q4 5 /* 4.5: the integers count entries of the tensor's own book of 16 int8 */
#define RWKVC_FORMAT_BYTES 15

/* What is done to a checkpoint's values on the way in (in f64, rounded once). */
#define RWKVC_TRANSFORM_NONE 0
#define RWKVC_TRANSFORM_EXP 1         /* exp(x) */
#define RWKVC_TRANSFORM_NEG_EXP 2     /* -exp(x) */
#define RWKVC_TRANSFORM_EXP_NEG_EXP 3 /* exp(-exp(x)) */

/* One tensor of a version, or of a model file. */
typedef struct {
    char name[RWKVC_MAX_NAME];   /* "blocks.0.att.key.weight" */
    char source[RWKVC_MAX_NAME]; /* the checkpoint's name for it: the same but for decays, bonuses, tied heads */
    uint32_t transform;          /* RWKVC_TRANSFORM_* */
    uint32_t kind;
    uint32_t format; /* RWKVC_FORMAT_*, in a plan as asked for, in a model as stored */
    uint32_t layer;  /* 0xffffffff for tensors outside the layers */
    uint32_t n_dims; /* shape in the checkpoint, without singleton dimensions */
    uint64_t shape[RWKVC_MAX_DIMS];
    uint32_t transposed; /* 1: the checkpoint stores [in, out]; packed as [out, in] all the same */
    uint64_t rows;       /* outputs; for EMBEDDING the vocabulary; 1 for VECTOR and BYTES */
    uint64_t cols;       /* inputs */
    uint64_t offset;     /* from the first byte of the file's data section */
    uint64_t size_bytes; /* packed, padding included */
    uint32_t crc32;      /* of the packed bytes */
} rwkvc_tensor_info;

/* Recognise the version and its sizes from a checkpoint's tensors (BlinkDL names, any order).
 * E_UNSUPPORTED: another architecture or an experimental variant, named. E_SHAPE: a tensor is
 * missing or has the wrong shape, named with both shapes. Tensors no table knows are ignored. */
rwkvc_status rwkvc_config_detect(const rwkvc_named_shape *tensors, uint32_t n, rwkvc_config *config);
/* How many tensors that version has with those sizes; 0 if the config is not valid. */
uint32_t rwkvc_config_tensors(const rwkvc_config *config);
/* The i-th of them: name, kind, shape, transposed, rows, cols (format F32, no offset). */
rwkvc_status rwkvc_config_tensor(const rwkvc_config *config, uint32_t i, rwkvc_tensor_info *info);
/* "RWKV-7" */
const char *rwkvc_version_name(uint32_t version);
/* "q8" → RWKVC_FORMAT_Q8, and back; -1 and NULL for unknown ones. */
int32_t rwkvc_format_by_name(const char *name);
const char *rwkvc_format_name(uint32_t format);
/* The format a file of quantisation `preset` stores a kind in: q8 to q4 → q8 for low-rank pairs, f32 for vectors;
 * q5 → q6 for the embedding, q4 → q5 for embedding and head. */
uint32_t rwkvc_format_for(uint32_t preset, uint32_t kind);

/* --------------------------------------------------------------------------- making model files */

#define RWKVC_DTYPE_F32 0
#define RWKVC_DTYPE_F16 1
#define RWKVC_DTYPE_BF16 2
#define RWKVC_DTYPE_Q8_0 3     /* GGML blocks of 32 values: f16 scale, 32 int8 */
#define RWKVC_DTYPE_Q4_0 4     /* f16 scale, 16 bytes: inputs i and i + 16 in a byte's low and high half, + 8 */
#define RWKVC_DTYPE_Q5_0 5     /* f16 scale, u32 with the fifth bits, 16 bytes as Q4_0, + 16 */
#define RWKVC_DTYPE_INTEGERS 6 /* what is to be stored: int8 [rows, cols], and `scales` */

/* Source values of one tensor: element (row, col) of a float dtype at
 *   data[(row / block_rows) * block_stride + (row % block_rows) * row_stride + (col / repeat) * col_stride]
 * with data aligned to its dtype. Block dtypes have rows of cols / 32 blocks, one after the other. Packed to a format
 * that holds their integers (any to q8; Q4_0 and Q5_0 to q5 and q6, Q4_0 to q4 with no other book), they keep integers and scales.
 * INTEGERS are within -128..127 for q8, -32..31 for q6, -16..15 for q5; for q4 within -8..7, where q stands for
 * book[q + 8]: value = scale * book[q + 8]. */
typedef struct {
    const void *data;
    uint32_t dtype, repeat;                       /* repeat: columns that share a value; 0: 1 */
    int64_t row_stride, col_stride, block_stride; /* elements */
    uint64_t block_rows;                          /* 0: all */
    const uint16_t *scales;                       /* INTEGERS: f16 [rows, groups of 32 inputs] */
    const int8_t *book; /* q4: [16], ascending unless for INTEGERS; NULL: the engine's choice (-8..7 for
                                                     integers) */
} rwkvc_source;

/* Bytes that `rows` x `cols` of this kind take in this format; 0 if they don't go together. */
uint64_t rwkvc_packed_bytes(uint32_t kind, uint32_t format, uint64_t rows, uint64_t cols);
/* Panels (units of work for rwkvc_pack) of such a tensor. */
uint64_t rwkvc_packed_panels(uint32_t kind, uint32_t format, uint64_t rows, uint64_t cols);
/* Pack panels first..last-1 into dst, the start of the whole packed tensor (zeroed, 64-byte aligned).
 * Pure: any ranges may run at once in several threads. E_NONFINITE names row and column. */
rwkvc_status rwkvc_pack(const rwkvc_tensor_info *info, const rwkvc_source *source, uint64_t first, uint64_t last,
                        void *dst);
/* CRC-32 of bytes as in a file's table and as zlib has it, going on from the checksum of what came before; 0 at first. */
uint32_t rwkvc_crc32(uint32_t before, const uint8_t *bytes, uint64_t size);
/* The stored values as f32 [rows, cols], rows first..last-1 to dst. */
rwkvc_status rwkvc_unpack(const rwkvc_tensor_info *info, const void *packed, uint64_t first, uint64_t last, float *dst);

/* Calibrated quantisation of one group of inputs (columns c .. c + n_inputs - 1, n_inputs <= 32) of a matrix: choose
 * scale and integers of each row so that sum over k of importance[k] * (target'[k] - stored[k])^2 is least, where the
 * inputs go in order and target'[k] = targets[k] + sum over j < k of feedback[j, k] * (weights[j] - stored[j]).
 * All row-major with `ld` elements from row to row. */
typedef struct {
    uint32_t struct_size;
    uint32_t format;    /* of integers */
    const int8_t *book; /* q4: [16], ascending */
    uint64_t n_inputs;
    const float *weights;    /* [rows, n_inputs] */
    const float *targets;    /* [rows, n_inputs]: weights, with the errors of earlier groups made up for */
    const float *feedback;   /* [n_inputs, n_inputs], above the diagonal; NULL: none */
    const float *importance; /* [n_inputs] */
    int8_t *integers;        /* out, as RWKVC_DTYPE_INTEGERS has them */
    uint16_t *scales;        /* out: f16, one a row */
    float *errors;           /* out: weights - stored */
    uint64_t ld_weights, ld_targets, ld_feedback, ld_integers, ld_scales, ld_errors;
} rwkvc_choice;
/* Rows first..last-1; any ranges may run at once in several threads. The same bits on every instruction set.
 * E_ARGUMENT, E_NONFINITE. */
rwkvc_status rwkvc_choose_group(const rwkvc_choice *choice, uint64_t first, uint64_t last);

/* Lay a file out: from tensors[i].format, .kind, .rows, .cols fill .offset and .size_bytes, first the
 * table's own place: tensors[0].offset = rwkvc_table_bytes(n). Model tensors come first, in the
 * config's order; then BYTES tensors, which bring name and cols = their length. */
uint64_t rwkvc_table_bytes(uint32_t n_tensors);
rwkvc_status rwkvc_table_layout(const rwkvc_config *config, rwkvc_tensor_info *tensors, uint32_t n,
                                uint64_t *data_bytes);
/* Write the binary table of a laid out file (with crc32 filled in) to out[rwkvc_table_bytes(n)]. */
rwkvc_status rwkvc_table_write(const rwkvc_config *config, const rwkvc_tensor_info *tensors, uint32_t n, uint8_t *out);

/* ---------------------------------------------------------------------------------------- model */

typedef struct rwkvc_model rwkvc_model;

/* Bind a whole .rwkv file in memory (64-byte aligned, as any mapping is). Reads the table, not the
 * weights. The bytes must stay until rwkvc_model_close. E_ARGUMENT (not aligned), E_FORMAT, E_UNSUPPORTED, E_SHAPE, E_NOMEM. */
rwkvc_status rwkvc_model_open(const void *bytes, uint64_t size_bytes, rwkvc_model **model);
/* Map and open the .rwkv file at `path`. Processes that open the same file share its pages, and rwkvc_model_close unmaps
 * it. As above, and E_NOT_FOUND, E_IO. */
rwkvc_status rwkvc_model_open_file(const char *path, rwkvc_model **model);
void rwkvc_model_close(rwkvc_model *model);
/* The whole file in memory, for rwkvc_read_ahead and rwkvc_prefault. */
const void *rwkvc_model_file(const rwkvc_model *model, uint64_t *size_bytes);
void rwkvc_model_config(const rwkvc_model *model, rwkvc_config *config);
uint32_t rwkvc_model_tensors(const rwkvc_model *model);
rwkvc_status rwkvc_model_tensor(const rwkvc_model *model, uint32_t i, rwkvc_tensor_info *info);
/* Where a tensor's bytes lie in the mapping: "tokenizer.world", "tokenizer.sentencepiece",
 * "chat_template", or a model tensor by name. NULL if there is none. */
const void *rwkvc_model_bytes(const rwkvc_model *model, const char *name, uint64_t *size_bytes);
/* Ask the system to read a mapped file, a model's say, before it is used. Maps nothing; may wait for a slow disk's queue.
 * Nothing where the system has no such call. */
void rwkvc_read_ahead(const void *bytes, uint64_t size_bytes);
/* Map page after page of it in the calling thread, which should be one that nobody waits for, so that no forward need
 * do that. *cancel set (may be NULL) ends it within milliseconds: E_CANCELLED. E_FORMAT: a file that became shorter, or
 * an unreadable disk. */
rwkvc_status rwkvc_prefault(const void *bytes, uint64_t size_bytes, const int32_t *cancel);
/* Bytes of weights one decoded token reads with no zero skipped (embedding: its one row). */
uint64_t rwkvc_model_token_bytes(const rwkvc_model *model);

/* ---------------------------------------------------------------------------------------- state */

/* A state is rwkvc_state_floats() contiguous f32, 64-byte aligned or not, copied by memcpy. Per layer:
 *   RWKV-4: att_shift[n_embd], ffn_shift[n_embd], aa, bb, pp [attention width]
 *   RWKV-5, 6, 7: att_shift[n_embd], ffn_shift[n_embd], wkv[n_head][key channel][value channel]
 * with shift = the previous token's ln1 / ln2 output. */
uint64_t rwkvc_state_floats(const rwkvc_model *model);
/* The state before the first token. */
void rwkvc_state_init(const rwkvc_model *model, float *state);
/* The parts of a state by name ("att_shift", "ffn_shift", "wkv"): first float in layer 0, floats between layers,
 * and shape (n_dims up to 3). E_ARGUMENT past the last part. */
typedef struct {
    const char *name;
    uint64_t offset, layer_stride;
    uint32_t n_dims;
    uint32_t shape[3];
} rwkvc_state_part;
rwkvc_status rwkvc_state_part_info(const rwkvc_model *model, uint32_t i, rwkvc_state_part *part);

/* ---------------------------------------------------------------------------------- state files */

/* What a state has read: how many tokens, and a digest of them that tells texts apart. All zero before the first. The
 * digest is made from the one before and the next id, so it does not matter how a text was cut into calls. */
typedef struct {
    uint64_t n_tokens;
    uint8_t digest[16];
} rwkvc_text;
void rwkvc_text_read(rwkvc_text *text, const uint32_t *tokens, uint64_t n);

/* What a model's states look like, and which model that is. Stays valid when the model is closed. */
typedef struct {
    uint64_t floats;
    uint32_t n_layer, n_vocab, n_parts;
    char fingerprint[36]; /* 32 hex digits: a digest of the model file's table, so of all its weights' checksums */
    rwkvc_state_part parts[RWKVC_MAX_STATE_PARTS];
} rwkvc_state_layout;
void rwkvc_state_describe(const rwkvc_model *model, rwkvc_state_layout *layout);

/* What a state file keeps. */
typedef struct {
    const float *state;  /* [floats] */
    const float *logits; /* [n_vocab], after the last token; NULL: not known */
    rwkvc_text text;
} rwkvc_saved_state;

/* Write a state file (safetensors; ARCHITECTURE.md), at once and whole: under a temporary name that is then renamed.
 * half 1: half the size, rounded to f16; parts with numbers that f16 cannot hold, and the logits, stay f32.
 * E_ARGUMENT, E_IO, E_NOMEM. */
rwkvc_status rwkvc_state_save(const rwkvc_state_layout *layout, const char *path, const rwkvc_saved_state *saved,
                              uint32_t half);
/* Read one into state[floats] and, unless NULL, logits[n_vocab], *has_logits (1 if the file has them; else `logits` is
 * left alone) and *text. E_NOT_FOUND, E_IO; E_FORMAT: no state file; E_STATE: of another model, or damaged: then
 * state and logits are undefined. */
rwkvc_status rwkvc_state_load(const rwkvc_state_layout *layout, const char *path, float *state, float *logits,
                              uint32_t *has_logits, rwkvc_text *text);
/* The same in memory. *size_bytes is what is needed; nothing is written if `room` is less. */
rwkvc_status rwkvc_state_to_bytes(const rwkvc_state_layout *layout, const rwkvc_saved_state *saved, uint32_t half,
                                  uint8_t *out, uint64_t room, uint64_t *size_bytes);
rwkvc_status rwkvc_state_from_bytes(const rwkvc_state_layout *layout, const uint8_t *bytes, uint64_t size_bytes,
                                    float *state, float *logits, uint32_t *has_logits, rwkvc_text *text);

/* -------------------------------------------------------------------------------------- forward */

typedef struct rwkvc_context rwkvc_context;

/* Threads, scratch memory and instruction set of a caller. */
typedef struct {
    uint32_t struct_size; /* sizeof(rwkvc_context_options) */
    uint32_t threads;     /* 0: rwkvc_default_threads() */
    const char *isa;      /* NULL: rwkvc_isa_default() */
    uint32_t chunk;       /* most tokens per pass, which bounds the scratch memory; 0: 264 */
} rwkvc_context_options;

void rwkvc_context_defaults(rwkvc_context_options *options);
rwkvc_status rwkvc_context_create(const rwkvc_context_options *options, rwkvc_context **ctx);
void rwkvc_context_destroy(rwkvc_context *ctx);
const char *rwkvc_context_isa(const rwkvc_context *ctx);
uint32_t rwkvc_context_threads(const rwkvc_context *ctx);
/* Scratch memory held now. */
uint64_t rwkvc_context_bytes(const rwkvc_context *ctx);
/* What passes of a single token met in the channel mixes' integer value matrices since the context was made: inputs in
 * all, those that were not zero (their columns were read), groups of 32 inputs that had one (their scales were read).
 * Not to be called during a forward. */
typedef struct {
    uint64_t inputs, columns, groups;
} rwkvc_value_reads;
void rwkvc_context_value_reads(const rwkvc_context *ctx, rwkvc_value_reads *reads);

#define RWKVC_LOGITS_NONE 0
#define RWKVC_LOGITS_LAST 1
#define RWKVC_LOGITS_ALL 2

/* One sequence of a batch. */
typedef struct {
    const uint32_t *tokens; /* [n_tokens], each < n_vocab */
    uint64_t n_tokens;      /* >= 1 */
    const float *state_in;  /* [state_floats]; NULL: the state before the first token */
    float *state_out;       /* [state_floats], may be state_in; with every_state [n_tokens, state_floats], may not */
    uint32_t logits;        /* RWKVC_LOGITS_* */
    uint32_t every_state;   /* 1: state_out receives the state after each token (checking a draft) */
    uint64_t n_done;        /* out: tokens that state_out holds */
    float *hidden;          /* [n_tokens, n_embd]: receives what the head multiplies, the last layer norm's output after
                               each token; NULL: not wanted */
} rwkvc_sequence;

typedef struct {
    uint32_t struct_size;
    const int32_t *cancel; /* polled; non-zero stops the call within milliseconds. NULL: never */
    void (*progress)(void *user, uint64_t tokens_done, uint64_t tokens_total); /* between chunks, caller's thread */
    void *user;
    /* Sees what each matrix product reads, just before it runs, on the caller's thread (calibration): the weight's name
     * and its inputs x [n, cols] in f32, `ld` floats from row to row. x is gone when it returns. NULL: none */
    void (*inputs)(void *user, const char *tensor, const float *x, uint64_t n, uint64_t cols, uint64_t ld);
} rwkvc_forward_options;

/* Advance n_seq independent sequences by their tokens: prefill, batched decode and the checking of
 * drafts are this one call.
 *   logits: f32 [rows wanted, n_vocab], sequence by sequence; NULL if none is wanted
 *   options: may be NULL
 * No state_out may overlap another sequence's state_in or state_out.
 * E_CANCELLED: state_out of each sequence is as after its last whole chunk, n_done tokens
 * (0: a copy of state_in). Other errors: state_out undefined, state_in untouched unless it is state_out.
 * After the first call with the largest batch it allocates nothing.
 * E_ARGUMENT, E_TOKEN, E_NONFINITE, E_NOMEM, E_CANCELLED, E_FORKED. */
rwkvc_status rwkvc_forward(rwkvc_context *ctx, const rwkvc_model *model, rwkvc_sequence *sequences, uint32_t n_seq,
                           float *logits, const rwkvc_forward_options *options);

/* -------------------------------------------------------------------------------------- sampler */

typedef struct rwkvc_sampler rwkvc_sampler;

/* In this order (docs/generation.md has the formulas):
 *   1. biases are added; penalties are taken off (repetition, presence and frequency, DRY); bans are taken out;
 *   2. temperature 0: the most likely token. mirostat_tau above 0: mirostat instead of all that follows;
 *   3. top_k, top_p, min_p and top_a each look at the probabilities of the whole vocabulary before temperature (as in
 *      the rwkv package), and a token must pass all of them;
 *   4. typical_p, then XTC, look at the probabilities of what is left, before temperature too;
 *   5. temperature, and the draw. */
typedef struct {
    uint32_t struct_size;
    float temperature;           /* 0: the most likely token */
    uint32_t top_k;              /* 0: all */
    float top_p;                 /* 1: all */
    float min_p;                 /* 0: all; else relative to the most likely token's probability */
    float top_a;                 /* 0: all; else p >= top_a * (largest p)^2 */
    float typical_p;             /* 1: all; else the share of the tokens whose surprise is nearest to the entropy */
    float xtc_probability;       /* 0: never; else how often only the least likely of the tokens */
    float xtc_threshold;         /* that are this likely or more is kept of them */
    float mirostat_tau;          /* 0: off; else the surprise to aim at, in bits (version 2) */
    float mirostat_eta;          /* and how fast */
    float presence_penalty;      /* subtracted once from the logit of a token that occurred, */
    float frequency_penalty;     /* and this times its count, */
    float repetition_penalty;    /* 1: none; else positive logits are divided, others multiplied by 1 + (this - 1) *
                                    min(count, 1) first */
    float penalty_decay;         /* counts fade by this factor a token (RWKV's habit: 0.996) */
    float dry_multiplier;        /* 0: off; else against going on with a sequence that occurred: this times */
    float dry_base;              /* this to the power of what is repeated beyond */
    uint32_t dry_allowed_length; /* tokens, */
    uint32_t dry_range;          /* looking at so many of the last tokens */
    uint64_t seed;
} rwkvc_sampler_options;

void rwkvc_sampler_defaults(rwkvc_sampler_options *options);
rwkvc_status rwkvc_sampler_create(uint32_t n_vocab, const rwkvc_sampler_options *options, rwkvc_sampler **sampler);
void rwkvc_sampler_destroy(rwkvc_sampler *sampler);
/* Never choose these ids. Replaces the earlier list, as the next three do theirs. */
rwkvc_status rwkvc_sampler_ban(rwkvc_sampler *sampler, const uint32_t *ids, uint32_t n);
/* Ids whose count stays 0 (digits, space and tab in the rwkv package). */
rwkvc_status rwkvc_sampler_exempt(rwkvc_sampler *sampler, const uint32_t *ids, uint32_t n);
/* Ids over which DRY sees no repetition (line ends, say). */
rwkvc_status rwkvc_sampler_dry_breakers(rwkvc_sampler *sampler, const uint32_t *ids, uint32_t n);
/* Finite numbers to add to the logits of ids. */
rwkvc_status rwkvc_sampler_bias(rwkvc_sampler *sampler, const uint32_t *ids, const float *biases, uint32_t n);
/* Choose from logits f32 [n_vocab] (left unchanged). allowed (may be NULL): a bit per token, the lowest of the first
 * word for token 0; ceil(n_vocab / 32) words. *logprob (may be NULL): natural log of the chosen token's probability
 * under the untouched logits. E_NONFINITE: NaN, +Inf, or nothing left to choose from. */
rwkvc_status rwkvc_sampler_sample(rwkvc_sampler *sampler, const float *logits, const uint32_t *allowed, uint32_t *token,
                                  float *logprob);
/* The n most likely tokens under the untouched logits (1 to 1024), best first, and the logs of their probabilities.
 * Changes nothing that sampling depends on. */
rwkvc_status rwkvc_sampler_top(rwkvc_sampler *sampler, const float *logits, uint32_t n, uint32_t *ids, float *logprobs);
/* Count a token for the penalties and remember it for DRY (a chosen one is not counted by itself). */
rwkvc_status rwkvc_sampler_accept(rwkvc_sampler *sampler, uint32_t token);
/* Remember tokens for DRY only: a prompt. */
rwkvc_status rwkvc_sampler_observe(rwkvc_sampler *sampler, const uint32_t *tokens, uint64_t n);
/* Go on from where another sampler of the same vocabulary and options is: what it counted, its random numbers. */
rwkvc_status rwkvc_sampler_follow(rwkvc_sampler *sampler, const rwkvc_sampler *leader);
/* Forget all tokens and start the random sequence again from the seed. */
void rwkvc_sampler_reset(rwkvc_sampler *sampler);

/* logprobs[i] = natural log of the probability of tokens[i] under logits[i] (f32 [n, n_vocab]); ranks[i] (may be NULL)
 * = how many tokens are likelier. E_TOKEN, E_NONFINITE. */
rwkvc_status rwkvc_logprobs(const float *logits, uint32_t n_vocab, const uint32_t *tokens, uint64_t n, float *logprobs,
                            uint32_t *ranks);

/* -------------------------------------------------------------------------------- World tokenizer */

typedef struct rwkvc_world rwkvc_world;

/* From the text of rwkv_vocab_v20230424.txt ("id literal length" a line, LF or CRLF). E_FORMAT names the line. */
rwkvc_status rwkvc_world_create(const uint8_t *vocabulary, uint64_t size_bytes, rwkvc_world **tokenizer);
/* The one in the model's file. E_UNSUPPORTED: the file has none, or one of another kind, which the host reads with that
 * kind's library from rwkvc_model_bytes(model, "tokenizer.sentencepiece") or "tokenizer.huggingface". */
rwkvc_status rwkvc_world_open(const rwkvc_model *model, rwkvc_world **tokenizer);
void rwkvc_world_destroy(rwkvc_world *tokenizer);
/* Highest id + 1. */
uint32_t rwkvc_world_vocab(const rwkvc_world *tokenizer);
/* Greedy longest match over any bytes. Writes up to `room` ids, *n_ids is how many there are. */
rwkvc_status rwkvc_world_encode(const rwkvc_world *tokenizer, const uint8_t *text, uint64_t size_bytes, uint32_t *ids,
                                uint64_t room, uint64_t *n_ids);
/* The bytes of one id; *size_bytes 0 for id 0 (end of text). E_TOKEN for an unused id. */
rwkvc_status rwkvc_world_bytes(const rwkvc_world *tokenizer, uint32_t id, const uint8_t **bytes, uint64_t *size_bytes);

/* ------------------------------------------------------------------- chat: templates, answers */

/* How a conversation is written for a model. Released World and G1 models were trained on
 *     System: <text>\n\nUser: <text>\n\nAssistant: <text>\n\n
 * The prompt ends at "Assistant:" without a space. */
typedef struct rwkvc_chat_template rwkvc_chat_template;

/* The model's own, "world" if its file brings none. E_FORMAT, E_NOMEM. */
rwkvc_status rwkvc_chat_template_open(const rwkvc_model *model, rwkvc_chat_template **chat);
/* From "world", "world-paragraph" (an answer ends at its first blank line), "raw" (no words at all), or JSON of the fields
 * below with "stop" (a list of texts), "raw" and "sampling" (numbers by name); what is missing is as in "world". */
rwkvc_status rwkvc_chat_template_create(const uint8_t *text, uint64_t size_bytes, rwkvc_chat_template **chat);
void rwkvc_chat_template_destroy(rwkvc_chat_template *chat);
/* "name", "system", "user", "assistant" (the labels), "separator", "jinja" ("" unless the model brings a Jinja template
 * that writes something else: the host renders that, rwkvc_chat_template_turn refuses); NULL: no such field. */
const char *rwkvc_chat_template_field(const rwkvc_chat_template *chat, const char *field);
/* 1: there are no turns; what is sent is continued as it stands. */
int32_t rwkvc_chat_template_raw(const rwkvc_chat_template *chat);
/* What the model answers best with: settings by name (rwkvc_sampler_options' fields, "max_tokens"). E_ARGUMENT past the
 * last. rwkvc_chat_template_sampling writes those that are sampler options into *options. */
rwkvc_status rwkvc_chat_template_setting(const rwkvc_chat_template *chat, uint32_t i, const char **name, double *value);
void rwkvc_chat_template_sampling(const rwkvc_chat_template *chat, rwkvc_sampler_options *options);

/* How a G1 model is asked to think: "" (as it likes, the mode of all others too), "off", "short", "on", "long".
 * remark: written after the question. lead: the answer's beginning, written for the model. */
typedef struct {
    const char *name, *remark, *lead;
} rwkvc_think_mode;
/* The i-th of them. E_ARGUMENT past the last. */
rwkvc_status rwkvc_think_mode_info(uint32_t i, rwkvc_think_mode *mode);

#define RWKVC_TURN_SYSTEM 0    /* the opening; nothing for an empty text */
#define RWKVC_TURN_USER 1      /* a user's turn, up to where the model begins to write */
#define RWKVC_TURN_ASSISTANT 2 /* an answer as it stands in the history, without its thought, its end included */
#define RWKVC_TURN_CLEAN 3     /* a text as a turn has it: no blank lines (they end a turn), no space around */
/* The text of one turn to out[room], with a 0 behind it; *size_bytes is its length without. Nothing is written if room
 * is not more than that. think: a mode's name, NULL for "". E_ARGUMENT: an empty message, no such mode or turn. E_UNSUPPORTED: a
 * Jinja template. */
rwkvc_status rwkvc_chat_template_turn(const rwkvc_chat_template *chat, uint32_t turn, const char *text,
                                      uint64_t size_bytes, const char *think, char *out, uint64_t room,
                                      uint64_t *written_bytes);
/* The i-th text that ends an answer in that mode; NULL past the last. */
const char *rwkvc_chat_template_stop(const rwkvc_chat_template *chat, const char *think, uint32_t i);

/* What a model writes, token by token, as text for people: whole characters only, up to a stop, its thought
 * (<think>...</think> at the start) apart from its answer. What is not yet certain is held back. */
typedef struct rwkvc_reader rwkvc_reader;
typedef struct {
    uint32_t struct_size;
    uint32_t n_stops;
    const char *const *stops; /* [n_stops]; copied */
    const char *lead;         /* what was written for the model already (rwkvc_think_mode.lead); NULL: nothing */
    uint32_t thoughts;        /* 1: tell thoughts apart; 0: all is answer */
    uint32_t decode;          /* 1: whole characters, U+FFFD for bytes that are none; 0: bytes as they come */
} rwkvc_reader_options;
/* Not ended by 0, good until the next call. */
typedef struct {
    const char *thought;
    uint64_t thought_bytes;
    const char *text;
    uint64_t text_bytes;
} rwkvc_piece;

void rwkvc_reader_defaults(rwkvc_reader_options *options);
rwkvc_status rwkvc_reader_create(const rwkvc_reader_options *options, rwkvc_reader **reader);
void rwkvc_reader_destroy(rwkvc_reader *reader);
/* Take the bytes of the next token; *piece is what is certain now. Everything after a stop is swallowed. */
rwkvc_status rwkvc_reader_feed(rwkvc_reader *reader, const uint8_t *bytes, uint64_t size_bytes, rwkvc_piece *piece);
/* What is left when no more comes. */
rwkvc_status rwkvc_reader_finish(rwkvc_reader *reader, rwkvc_piece *piece);
/* The stop that appeared, else NULL. */
const char *rwkvc_reader_stopped(const rwkvc_reader *reader);
/* Whether a thought has begun and not ended. */
int32_t rwkvc_reader_thinking(const rwkvc_reader *reader);
/* What may turn out to be the beginning of a stop; its length. */
uint64_t rwkvc_reader_withheld(const rwkvc_reader *reader, const char **text);

/* --------------------------------------------------------------------------------------- measure */

/* What this machine can do at best right now: bytes per second of a sequential read over `bytes` of memory, and
 * int8 multiply-adds x 2 per second with operands in registers, with the context's threads and instruction set.
 * Takes about a second. */
rwkvc_status rwkvc_measure_read(rwkvc_context *ctx, uint64_t bytes, double *bytes_per_second);
rwkvc_status rwkvc_measure_int8(rwkvc_context *ctx, double *operations_per_second);

/* Parts of a forward by themselves, as it would run them, over weights and inputs that are made up. */
#define RWKVC_PART_PRODUCT 0    /* a matrix product: kind, format, rows, cols, zeros */
#define RWKVC_PART_RECURRENCE 1 /* RWKV-7's, of `rows` heads of `cols` channels: tokens one after the other */
typedef struct {
    uint32_t part;   /* RWKVC_PART_* */
    uint32_t kind;   /* RWKVC_KIND_MATRIX, LOW_RANK, VALUE or HEAD */
    uint32_t format; /* RWKVC_FORMAT_* */
    uint32_t rows, cols, tokens;
    uint32_t copies; /* of the weights or heads, used in turn, so that caches do not hold them */
    double zeros;    /* share of the inputs that are 0 */
} rwkvc_part;
typedef struct {
    double seconds;       /* of the fastest pass over one copy */
    double bytes;         /* of weights or state that it read, skipped columns left out */
    double multiply_adds; /* that it did, zeros included */
} rwkvc_part_cost;
/* Takes about half a second. E_ARGUMENT: sizes that do not go together. E_NOMEM. */
rwkvc_status rwkvc_measure_part(rwkvc_context *ctx, const rwkvc_part *part, rwkvc_part_cost *cost);

/* cdef: end */

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif

#ifdef __cplusplus
}
#endif

#endif /* RWKV_CPU_H */
