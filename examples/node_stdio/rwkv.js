// SPDX-License-Identifier: Apache-2.0
"use strict";
// A client of `rwkv-cpu serve --stdio` without dependencies, to copy into your own program.

const { spawn } = require("node:child_process");
const { createInterface } = require("node:readline");

/** An error that the server answered with: code, and in data "code", "class" and "hint" (what to do about it). */
class RwkvError extends Error {
  constructor({ code, message, data }) {
    super(message);
    Object.assign(this, { name: data.class, code, hint: data.hint });
  }
}

class Rwkv {
  #process;
  #waiting = new Map(); // id of a request → what to do with its response and events
  #lastId = 0;
  #ended;

  /** Starts the server. command: ["rwkv-cpu"] or where you put it. */
  constructor(command = ["rwkv-cpu"], args = []) {
    const [program, ...first] = command;
    this.#process = spawn(program, [...first, "serve", "--stdio", ...args], {
      stdio: ["pipe", "pipe", "inherit"],
      windowsHide: true,
    });
    this.#process.stdin.on("error", () => {}); // the server is gone: "exit" says so
    createInterface({ input: this.#process.stdout }).on("line", (line) => this.#take(JSON.parse(line)));
    this.#ended = new Promise((resolve) => {
      this.#process.on("error", (error) => resolve(this.#fail(error)));
      this.#process.on("close", (code) => {
        this.#fail(new Error(`rwkv-cpu ended (${code})`));
        resolve(code);
      });
    });
  }

  /**
   * Asks for something; resolves to the result, rejects with an RwkvError.
   * onEvent: called with what happens meanwhile, {kind: "prefill" | "text" | …}. signal: an AbortSignal that cancels.
   */
  request(method, params = {}, { onEvent, signal } = {}) {
    const id = ++this.#lastId;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject, onEvent });
      this.#write({ jsonrpc: "2.0", id, method, params });
      const cancel = () => this.#write({ jsonrpc: "2.0", method: "$/cancelRequest", params: { id } });
      if (signal?.aborted) cancel();
      else signal?.addEventListener("abort", cancel, { once: true });
    });
  }

  /** Ends everything; resolves to the exit code. */
  async close() {
    if (this.#process.exitCode === null) await this.request("shutdown").catch(() => {});
    this.#process.stdin.end();
    return this.#ended;
  }

  #write(message) {
    this.#process.stdin.write(JSON.stringify(message) + "\n");
  }

  #take(message) {
    if (message.method === "event") {
      this.#waiting.get(message.params.id)?.onEvent?.(message.params);
      return;
    }
    const request = this.#waiting.get(message.id);
    this.#waiting.delete(message.id);
    if (message.error) request?.reject(new RwkvError(message.error));
    else request?.resolve(message.result);
  }

  #fail(error) {
    for (const { reject } of this.#waiting.values()) reject(error);
    this.#waiting.clear();
  }
}

module.exports = { Rwkv, RwkvError };
