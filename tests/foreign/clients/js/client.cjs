// opentelemetry-js and its own instrumentations of the OpenAI client and of fetch. OTEL_EXPORTER_OTLP_* say where to, and how.
const { NodeSDK } = require("@opentelemetry/sdk-node");
const { OpenAIInstrumentation } = require("@opentelemetry/instrumentation-openai");
const { UndiciInstrumentation } = require("@opentelemetry/instrumentation-undici");

const sdk = new NodeSDK({ instrumentations: [new OpenAIInstrumentation(), new UndiciInstrumentation()] });
sdk.start();

const { OpenAI } = require("openai");

async function main() {
  const client = new OpenAI({ baseURL: `${process.argv[3]}/v1`, apiKey: "none" });
  const asked = { model: "tiny", messages: [{ role: "user", content: "say something" }], max_tokens: 8 };
  await client.chat.completions.create(asked);
  const stream = await client.chat.completions.create({ ...asked, stream: true, stream_options: { include_usage: true } });
  for await (const _ of stream);
  await sdk.shutdown();
}

main();
