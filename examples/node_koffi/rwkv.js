// SPDX-License-Identifier: Apache-2.0
"use strict";
// The part of rwkv_cpu.h that a chat needs, through koffi (npm install koffi). Another language's foreign-function
// interface looks alike: opaque handles, structs with fixed-size integers, text as UTF-8 with its length.

const koffi = require("koffi");

const OK = 0;
const CANCELLED = 9;
const NOT_FOUND = 11;
const LOGITS_LAST = 1;
const TURN = { system: 0, user: 1, assistant: 2 };

for (const name of ["model", "context", "world", "sampler", "chat_template", "reader"]) koffi.opaque(`rwkvc_${name}`);
koffi.alias("rwkvc_status", "int32_t");
const Part = koffi.struct("rwkvc_state_part", {
  name: "const char *", offset: "uint64_t", layer_stride: "uint64_t", n_dims: "uint32_t",
  shape: koffi.array("uint32_t", 3),
});
koffi.struct("rwkvc_state_layout", {
  floats: "uint64_t", n_layer: "uint32_t", n_vocab: "uint32_t", n_parts: "uint32_t",
  fingerprint: koffi.array("char", 36, "String"), parts: koffi.array(Part, 8),
});
koffi.struct("rwkvc_text", { n_tokens: "uint64_t", digest: koffi.array("uint8_t", 16) });
koffi.struct("rwkvc_saved_state", { state: "const float *", logits: "const float *", text: "rwkvc_text" });
koffi.struct("rwkvc_sequence", {
  tokens: "const uint32_t *", n_tokens: "uint64_t", state_in: "float *", state_out: "float *",
  logits: "uint32_t", every_state: "uint32_t", n_done: "uint64_t", hidden: "float *",
});
koffi.struct("rwkvc_forward_options", {
  struct_size: "uint32_t", cancel: "const int32_t *", progress: "void *", user: "void *", inputs: "void *",
});
const floats = (names) => Object.fromEntries(names.split(" ").map((name) => [name, "float"]));
koffi.struct("rwkvc_sampler_options", {
  struct_size: "uint32_t", temperature: "float", top_k: "uint32_t",
  ...floats("top_p min_p top_a typical_p xtc_probability xtc_threshold mirostat_tau mirostat_eta"),
  ...floats("presence_penalty frequency_penalty repetition_penalty penalty_decay dry_multiplier dry_base"),
  dry_allowed_length: "uint32_t", dry_range: "uint32_t", seed: "uint64_t",
});
koffi.struct("rwkvc_reader_options", {
  struct_size: "uint32_t", n_stops: "uint32_t", stops: "const char **", lead: "const char *",
  thoughts: "uint32_t", decode: "uint32_t",
});
koffi.struct("rwkvc_piece", {
  thought: "void *", thought_bytes: "uint64_t", text: "void *", text_bytes: "uint64_t",
});

const DECLARATIONS = `
const char *rwkvc_version(void)
const char *rwkvc_last_error(void)
const char *rwkvc_last_hint(void)
rwkvc_status rwkvc_model_open_file(const char *path, _Out_ rwkvc_model **model)
void rwkvc_model_close(rwkvc_model *model)
rwkvc_status rwkvc_context_create(void *options, _Out_ rwkvc_context **context)
void rwkvc_context_destroy(rwkvc_context *context)
rwkvc_status rwkvc_world_open(rwkvc_model *model, _Out_ rwkvc_world **world)
void rwkvc_world_destroy(rwkvc_world *world)
rwkvc_status rwkvc_world_encode(rwkvc_world *world, const uint8_t *text, uint64_t size, _Out_ uint32_t *ids, uint64_t room, _Out_ uint64_t *n)
rwkvc_status rwkvc_world_bytes(rwkvc_world *world, uint32_t id, _Out_ void **bytes, _Out_ uint64_t *size)
rwkvc_status rwkvc_chat_template_open(rwkvc_model *model, _Out_ rwkvc_chat_template **chat)
void rwkvc_chat_template_destroy(rwkvc_chat_template *chat)
rwkvc_status rwkvc_chat_template_turn(rwkvc_chat_template *chat, uint32_t turn, const uint8_t *text, uint64_t size, const char *think, _Out_ uint8_t *out, uint64_t room, _Out_ uint64_t *written)
const char *rwkvc_chat_template_stop(rwkvc_chat_template *chat, const char *think, uint32_t i)
void rwkvc_chat_template_sampling(rwkvc_chat_template *chat, _Inout_ rwkvc_sampler_options *options)
void rwkvc_sampler_defaults(_Out_ rwkvc_sampler_options *options)
rwkvc_status rwkvc_sampler_create(uint32_t n_vocab, const rwkvc_sampler_options *options, _Out_ rwkvc_sampler **sampler)
void rwkvc_sampler_destroy(rwkvc_sampler *sampler)
rwkvc_status rwkvc_sampler_sample(rwkvc_sampler *sampler, const float *logits, void *allowed, _Out_ uint32_t *token, void *logprob)
rwkvc_status rwkvc_sampler_accept(rwkvc_sampler *sampler, uint32_t token)
void rwkvc_reader_defaults(_Out_ rwkvc_reader_options *options)
rwkvc_status rwkvc_reader_create(const rwkvc_reader_options *options, _Out_ rwkvc_reader **reader)
void rwkvc_reader_destroy(rwkvc_reader *reader)
rwkvc_status rwkvc_reader_feed(rwkvc_reader *reader, void *bytes, uint64_t size, _Out_ rwkvc_piece *piece)
rwkvc_status rwkvc_reader_finish(rwkvc_reader *reader, _Out_ rwkvc_piece *piece)
const char *rwkvc_reader_stopped(rwkvc_reader *reader)
void rwkvc_state_describe(rwkvc_model *model, _Out_ rwkvc_state_layout *layout)
void rwkvc_state_init(rwkvc_model *model, float *state)
void rwkvc_text_read(_Inout_ rwkvc_text *text, const uint32_t *tokens, uint64_t n)
rwkvc_status rwkvc_state_save(const rwkvc_state_layout *layout, const char *path, const rwkvc_saved_state *saved, uint32_t half)
rwkvc_status rwkvc_state_load(const rwkvc_state_layout *layout, const char *path, float *state, void *logits, void *has_logits, _Out_ rwkvc_text *text)
rwkvc_status rwkvc_forward(rwkvc_context *context, rwkvc_model *model, _Inout_ rwkvc_sequence *sequence, uint32_t n, float *logits, const rwkvc_forward_options *options)
`;

/** The functions of the shared library at `path`, without their prefix. */
function load(path) {
  const library = koffi.load(path);
  const found = {};
  for (const line of DECLARATIONS.trim().split("\n")) found[/rwkvc_(\w+)\(/.exec(line)[1]] = library.func(line);
  return found;
}

module.exports = { koffi, load, OK, CANCELLED, NOT_FOUND, LOGITS_LAST, TURN };
