"use strict";
// Each refusal is the exception the official Node client has for it.

const assert = require("node:assert/strict");
const test = require("node:test");
const { OpenAI, client, ask } = require("./client.js");

async function refused(kind, status, call) {
  const error = await call().then(
    () => assert.fail("it was not refused"),
    (why) => why,
  );
  assert.equal(error.constructor.name, kind.name);
  assert.ok(error instanceof kind);
  assert.equal(error.status, status);
  assert.ok(error.error.message.length > 10);
  return error;
}

function chat(key, more, options) {
  return client(key, options).chat.completions.create(ask(more));
}

async function repeat(key, more, options) {
  for (let n = 0; n < 20; n += 1) await chat(key, more, options);
}

test("an unknown model is not found", async () => {
  const error = await refused(OpenAI.NotFoundError, 404, () => chat("RICH", { model: "no-such-model" }));
  assert.equal(error.code, "model_not_found");
});

test("a wrong body is a bad request", async () => {
  await refused(OpenAI.BadRequestError, 400, () => chat("RICH", { messages: 7 }));
});

test("a wrong key is an authentication error", async () => {
  await refused(OpenAI.AuthenticationError, 401, () => chat("pm-wrong"));
});

test("a spent quota is payment required and not retried", async () => {
  const error = await refused(OpenAI.APIError, 402, () => repeat("POOR", { max_tokens: 16 }, { maxRetries: 2 }));
  assert.equal(error.code, "insufficient_quota");
  assert.equal(error.headers.get("x-should-retry"), "false");
});

test("a rate is limited with a time to come back", async () => {
  const error = await refused(OpenAI.RateLimitError, 429, () => repeat("SLOW", { max_tokens: 1 }));
  assert.ok(Number(error.headers.get("retry-after")) >= 1);
});

test("nobody left is service unavailable", async () => {
  await refused(OpenAI.InternalServerError, 503, () => chat("RICH", { model: "gone" }));
});

test("a stream that breaks ends in an error", async () => {
  const stream = await client().chat.completions.create(ask({ model: "broken", stream: true }));
  let text = "";
  await assert.rejects(async () => {
    for await (const chunk of stream) text += chunk.choices[0]?.delta?.content ?? "";
  }, OpenAI.APIError);
  assert.equal(text, "one ");
});
