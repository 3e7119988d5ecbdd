// The OpenAI Node SDK, unmodified, with only its base URL changed. Prints one line per promise that
// holds and exits 1 at the first that does not. Reads BASE_URL, API_KEY and OTHER_API_KEY.
import assert from "node:assert/strict";
import OpenAI from "openai";

const client = new OpenAI({
  baseURL: process.env.BASE_URL,
  apiKey: process.env.API_KEY,
  maxRetries: 0,
  timeout: 20_000,
});
const messages = [{ role: "user", content: "Say it back to me." }];
const tools = [
  { type: "function", function: { name: "get_weather", parameters: { type: "object" } } },
];

async function refused(from, model, kind, code) {
  for (const stream of [false, true]) {
    await assert.rejects(from.chat.completions.create({ model, messages, stream }), (error) => {
      assert.ok(error instanceof kind, `${error.constructor.name}: ${error.message}`);
      assert.equal(error.code, code);
      assert.ok(error.requestID);
      return true;
    });
  }
}

const promises = {
  async chat() {
    const answer = await client.chat.completions.create({ model: "mock/echo", messages });
    assert.equal(answer.choices[0].message.content, "Say it back to me.");
    assert.equal(answer.choices[0].finish_reason, "stop");
    assert.equal(answer.usage.total_tokens, 10);
  },
  async stream() {
    const stream = await client.chat.completions.create({
      model: "mock/echo",
      messages,
      stream: true,
      stream_options: { include_usage: true },
    });
    let text = "";
    let usage = null;
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta.content ?? "";
      usage = chunk.usage ?? usage;
    }
    assert.equal(text, "Say it back to me.");
    assert.equal(usage.total_tokens, 10);
  },
  async streaming_helper() {
    const runner = client.chat.completions.stream({ model: "mock/echo", messages });
    assert.equal(await runner.finalContent(), "Say it back to me.");
  },
  async tools() {
    const answer = await client.chat.completions.create({ model: "mock/tools", messages, tools });
    assert.equal(answer.choices[0].finish_reason, "tool_calls");
    const [call] = answer.choices[0].message.tool_calls;
    assert.deepEqual(JSON.parse(call.function.arguments), { city: "Paris" });
    const runner = client.chat.completions.stream({ model: "mock/tools", messages, tools });
    const final = await runner.finalMessage();
    assert.equal(final.tool_calls[0].function.name, "get_weather");
  },
  async errors() {
    const stranger = client.withOptions({ apiKey: "sk-PLANTED-not-a-key-of-anyone" });
    const narrow = client.withOptions({ apiKey: process.env.OTHER_API_KEY });
    await refused(stranger, "mock/echo", OpenAI.AuthenticationError, "invalid_api_key");
    await refused(narrow, "mock/echo", OpenAI.PermissionDeniedError, "model_not_allowed");
    await refused(client, "mock/nothing", OpenAI.NotFoundError, "model_not_found");
    await refused(client, "", OpenAI.BadRequestError, "invalid_value");
    await refused(client, "mock/busy", OpenAI.RateLimitError, "provider_rate_limit");
    await refused(client, "mock/down", OpenAI.InternalServerError, "provider_error");
  },
  async models() {
    const ids = [];
    for await (const model of client.models.list()) ids.push(model.id);
    assert.ok(ids.includes("mock/echo"), ids.join());
  },
};

for (const [name, promise] of Object.entries(promises)) {
  await promise();
  console.log(`ok ${name}`);
}
