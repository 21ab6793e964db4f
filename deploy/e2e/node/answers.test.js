"use strict";
// What the official Node client gets when all is well.

const assert = require("node:assert/strict");
const test = require("node:test");
const { client, ask } = require("./client.js");

test("a chat is answered with its usage", async () => {
  const answer = await client().chat.completions.create(ask());
  assert.ok(answer.choices[0].message.content.length > 0);
  assert.ok(["stop", "length"].includes(answer.choices[0].finish_reason));
  assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
});

test("a stream ends once and carries its usage where asked", async () => {
  const more = { stream: true, stream_options: { include_usage: true } };
  const chunks = [];
  for await (const chunk of await client().chat.completions.create(ask(more))) chunks.push(chunk);
  const choices = chunks.flatMap((chunk) => chunk.choices);
  assert.equal(choices.filter((choice) => choice.finish_reason).length, 1);
  assert.ok(choices.map((choice) => choice.delta.content ?? "").join("").length > 0);
  assert.equal(chunks.filter((chunk) => chunk.usage).length, 1);
  assert.ok(chunks.at(-1).usage.completion_tokens > 0);
});

test("the models are listed and found by name", async () => {
  const names = [];
  for await (const model of client().models.list()) names.push(model.id);
  assert.ok(names.includes("demo"));
  assert.equal((await client().models.retrieve("demo")).id, "demo");
});

test("embeddings come one for each input", async () => {
  const answer = await client().embeddings.create({ model: "demo", input: ["one", "two"] });
  assert.deepEqual(answer.data.map((item) => item.index), [0, 1]);
  for (const item of answer.data) {
    assert.ok(item.embedding.length > 0 && item.embedding.every(Number.isFinite));
  }
});

test("answers name request, replica and attempts", async () => {
  const { response } = await client().chat.completions.create(ask()).withResponse();
  assert.ok(response.headers.get("x-request-id"));
  assert.match(response.headers.get("x-pointsman-replica"), /^r[123]$/);
  assert.equal(response.headers.get("x-pointsman-attempts"), "1");
});

test("a session stays on its replica", async () => {
  const homes = new Set();
  for (let n = 0; n < 6; n += 1) {
    const call = client().chat.completions.create(ask({ session_id: "from-node" }));
    homes.add((await call.withResponse()).response.headers.get("x-pointsman-replica"));
  }
  assert.equal(homes.size, 1);
});

test("a client that leaves its stream is no failure", async () => {
  const stream = await client().chat.completions.create(ask({ stream: true, max_tokens: 200 }));
  for await (const chunk of stream) {
    assert.ok(chunk.id);
    break;
  }
  assert.ok((await client().chat.completions.create(ask())).choices.length);
});
