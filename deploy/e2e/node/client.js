"use strict";
// A client of the world that node_world.py has set up, holding one of its keys.

const OpenAI = require("openai");

function client(key = "RICH", options = {}) {
  return new OpenAI({
    baseURL: `${process.env.POINTSMAN_URL}/v1`,
    apiKey: process.env[`POINTSMAN_KEY_${key}`] ?? key,
    maxRetries: 0,
    timeout: 30_000,
    ...options,
  });
}

function ask(more = {}) {
  return { model: "demo", max_tokens: 8, messages: [{ role: "user", content: "Say something." }], ...more };
}

module.exports = { OpenAI, client, ask };
