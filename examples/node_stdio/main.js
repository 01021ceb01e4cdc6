// SPDX-License-Identifier: Apache-2.0
"use strict";
// node main.js [COMMAND …]: a tour of rwkv-cpu's server; COMMAND starts rwkv-cpu (the default: rwkv-cpu).

const fs = require("node:fs");
const os = require("node:os");
const path = require("node:path");
const { Rwkv } = require("./rwkv.js");

async function main() {
  const command = process.argv.slice(2);
  const rwkv = new Rwkv(command.length ? command : ["rwkv-cpu"]);
  const { server } = await rwkv.request("initialize", { protocol: 1 });
  console.log(`${server.name} ${server.version}`);

  const { models } = await rwkv.request("models");
  for (const { name, memory } of models) console.log(`model ${name}: ${memory.would_swap ? memory.warning : "fits"}`);
  const loaded = await rwkv.request("load", { model: "demo" });
  console.log(`loaded ${loaded.architecture}, ${loaded.threads} threads`);

  const { chat } = await rwkv.request("chat/create", { temperature: 0 });
  const send = (text, options) => rwkv.request("chat/send", { chat, text }, options);

  process.stdout.write("> Hello! My name is Ada.\n");
  await send("Hello! My name is Ada.", {
    onEvent: (event) => event.kind === "text" && process.stdout.write(event.text),
  });

  // Stopped while the model reads a long message: the chat is what it was before.
  const stop = new AbortController();
  const cancelled = await send("word ".repeat(100000), {
    signal: stop.signal,
    onEvent: (event) => event.kind === "prefill" && stop.abort(),
  });
  console.log(`\nlong message: ${cancelled.finish_reason}, ${cancelled.turns} turn`);

  console.log(`> What is my name?\n${(await send("What is my name?")).text}`);
  const { taken } = await rwkv.request("chat/undo", { chat });
  console.log(`taken back: ${taken[0].user}`);

  // A state is all that a model remembers: kept in a file, it goes on at once.
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), "rwkv-"));
  try {
    const file = path.join(folder, "story.state");
    const { state } = await rwkv.request("state/new");
    const options = { temperature: 0, max_tokens: 5 };
    const first = await rwkv.request("generate", { prompt: "Once upon a time", state, ...options });
    await rwkv.request("state/save", { state, path: file });
    const again = await rwkv.request("state/load", { path: file });
    const second = await rwkv.request("generate", { state: again.state, ...options });
    console.log(`Once upon a time${first.text}|${second.text}`);
  } finally {
    fs.rmSync(folder, { recursive: true });
  }

  await rwkv.request("chat/send", { chat, txt: "Hi" }).catch((error) => {
    console.log(`${error.name}: ${error.message} (${error.hint})`);
  });
  console.log(`ended with ${await rwkv.close()}`);
}

main().catch((error) => {
  console.error(error.hint ? `${error.message}: ${error.hint}` : error.message);
  process.exitCode = 1;
});
