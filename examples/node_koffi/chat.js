// SPDX-License-Identifier: Apache-2.0
"use strict";
// node chat.js LIBRARY MODEL.rwkv [STATE]: a chat; every line of input is a question. Ctrl-C stops an answer, the end of
// the input ends the chat, and STATE keeps the conversation until the next time. LIBRARY: build/lib/librwkv_cpu.so,
// after `make lib`. The model has the World vocabulary (examples/README.md has one for a first try).

const readline = require("node:readline");
const { koffi, load, OK, CANCELLED, NOT_FOUND, LOGITS_LAST, TURN } = require("./rwkv.js");

const MAX_ANSWER = 1000;

class Chat {
  constructor(library, modelPath) {
    this.lib = load(library);
    this.model = this.made("model_open_file", modelPath);
    this.context = this.made("context_create", null);
    this.world = this.made("world_open", this.model);
    this.template = this.made("chat_template_open", this.model);
    this.layout = {};
    this.lib.state_describe(this.model, this.layout);
    const sampling = {};
    this.lib.sampler_defaults(sampling);
    this.lib.chat_template_sampling(this.template, sampling);
    this.sampler = this.made("sampler_create", this.layout.n_vocab, { ...sampling, seed: Date.now() });
    // Memory of the library's side: `state` is the conversation, `work` that and the answer as it is made.
    for (const name of ["state", "work"]) this[name] = koffi.alloc("float", Number(this.layout.floats));
    this.logits = koffi.alloc("float", this.layout.n_vocab);
    this.stop = koffi.alloc("int32_t", 1);
    this.text = { n_tokens: 0, digest: new Array(16).fill(0) };
    this.lib.state_init(this.model, this.state);
  }

  check(status) {
    if (status === OK) return;
    const hint = this.lib.last_hint();
    throw Object.assign(new Error(this.lib.last_error() + (hint ? `\n${hint}` : "")), { status });
  }

  /** What a function makes and hands out through its last argument. */
  made(name, ...args) {
    const out = [null];
    this.check(this.lib[name](...args, out));
    return out[0];
  }

  encode(text) {
    const bytes = Buffer.from(text);
    const ids = new Uint32Array(bytes.length + 1);
    const n = [0];
    this.check(this.lib.world_encode(this.world, bytes, bytes.length, ids, ids.length, n));
    return ids.subarray(0, Number(n[0]));
  }

  /** Read tokens on from one state into another, in a thread of its own; false if that was cancelled. */
  async read(ids, from, to) {
    const sequence = {
      tokens: ids, n_tokens: ids.length, state_in: from, state_out: to,
      logits: LOGITS_LAST, every_state: 0, n_done: 0, hidden: null,
    };
    const options = {
      struct_size: koffi.sizeof("rwkvc_forward_options"), cancel: this.stop, progress: null, user: null, inputs: null,
    };
    const forward = (...args) =>
      new Promise((resolve, reject) => {
        this.lib.forward.async(...args, (error, status) => (error ? reject(error) : resolve(status)));
      });
    const status = await forward(this.context, this.model, sequence, 1, this.logits, options);
    if (status !== CANCELLED) this.check(status);
    return status === OK;
  }

  turn(turn, text) {
    const bytes = Buffer.from(text);
    const out = Buffer.alloc(bytes.length + 256);
    const size = [0];
    this.check(this.lib.chat_template_turn(this.template, turn, bytes, bytes.length, "", out, out.length, size));
    return out.toString("utf8", 0, Number(size[0]));
  }

  reader() {
    const options = {};
    this.lib.reader_defaults(options);
    const stops = [];
    for (let stop; (stop = this.lib.chat_template_stop(this.template, "", stops.length)) !== null; ) stops.push(stop);
    return this.made("reader_create", { ...options, stops, n_stops: stops.length });
  }

  /** Ask; yields the answer as it is made. setStop(1) ends it. */
  async *ask(question) {
    const { lib } = this;
    const reader = this.reader();
    const prompt = this.turn(TURN.user, question);
    let answer = "";
    try {
      this.setStop(0);
      let going = await this.read(this.encode(prompt), this.state, this.work);
      for (let n = 0; going; n++) {
        const [token, bytes, size, piece] = [[0], [null], [0], {}];
        this.check(lib.sampler_sample(this.sampler, this.logits, null, token, null));
        this.check(lib.sampler_accept(this.sampler, token[0]));
        going = token[0] !== 0 && n < MAX_ANSWER && (await this.read(new Uint32Array(token), this.work, this.work));
        lib.world_bytes(this.world, token[0], bytes, size); // an id that stands for nothing has no bytes
        this.check(going ? lib.reader_feed(reader, bytes[0], size[0], piece) : lib.reader_finish(reader, piece));
        const text = textOf(piece.text, piece.text_bytes);
        answer += text;
        if (text) yield text;
        going = going && lib.reader_stopped(reader) === null;
      }
    } finally {
      lib.reader_destroy(reader);
    }
    // The history has the turn as the model was trained on it: without thought, stop and what came after.
    const ids = this.encode(prompt + this.turn(TURN.assistant, answer));
    this.setStop(0);
    await this.read(ids, this.state, this.state);
    lib.text_read(this.text, ids, ids.length);
  }

  setStop(value) {
    koffi.encode(this.stop, "int32_t", value);
  }

  save(path) {
    this.check(this.lib.state_save(this.layout, path, { state: this.state, logits: null, text: this.text }, 0));
  }

  /** False if there is no such file. */
  resume(path) {
    const status = this.lib.state_load(this.layout, path, this.state, null, null, this.text);
    if (status !== NOT_FOUND) this.check(status);
    return status === OK;
  }

  close() {
    const { lib } = this;
    lib.sampler_destroy(this.sampler);
    lib.chat_template_destroy(this.template);
    lib.world_destroy(this.world);
    lib.context_destroy(this.context);
    lib.model_close(this.model);
    for (const memory of [this.state, this.work, this.logits, this.stop]) koffi.free(memory);
  }
}

function textOf(pointer, size) {
  return size ? Buffer.from(koffi.decode(pointer, koffi.array("uint8_t", Number(size)))).toString("utf8") : "";
}

async function main([library, model, state]) {
  if (!model) throw new Error("usage: node chat.js LIBRARY MODEL.rwkv [STATE]");
  const chat = new Chat(library, model);
  if (state && chat.resume(state)) console.log(`(going on after ${chat.text.n_tokens} tokens)`);
  process.on("SIGINT", () => chat.setStop(1));
  for await (const question of readline.createInterface({ input: process.stdin })) {
    if (!question.trim()) continue;
    for await (const piece of chat.ask(question)) process.stdout.write(piece);
    process.stdout.write("\n");
  }
  if (state) chat.save(state);
  chat.close();
}

module.exports = { Chat };
if (require.main === module)
  main(process.argv.slice(2)).catch((error) => {
    console.error(`chat: ${error.message}`);
    process.exitCode = 1;
  });
