// Chats with a served model by the AI SDK, whole and streamed, and has it call a tool. Prints what came as JSON.
// node chat.mjs URL MODEL
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText, tool } from "ai";
import { z } from "zod";

const [url, model] = process.argv.slice(2);
const provider = createOpenAICompatible({ name: "outrider", baseURL: `${url}/v1`, apiKey: "none", includeUsage: true });
const asked = { model: provider(model), prompt: "Write a function that adds two numbers.", seed: 5, maxOutputTokens: 20 };

const whole = await generateText(asked);
const streamed = streamText(asked);
let text = "";
for await (const part of streamed.textStream) text += part;

const weather = tool({
  description: "What the weather will be.",
  inputSchema: z.strictObject({ city: z.string().max(12), days: z.number().int().min(0).max(9) }),
});
const called = await generateText({
  ...asked,
  maxOutputTokens: 200,
  tools: { weather },
  toolChoice: "required",
  providerOptions: { outrider: { parallel_tool_calls: false } },
});
console.log(
  JSON.stringify({
    whole: whole.text,
    streamed: text,
    finishReason: whole.finishReason,
    usage: whole.usage.outputTokens,
    streamedUsage: (await streamed.usage).outputTokens,
    calls: called.toolCalls.map((call) => ({ name: call.toolName, input: call.input })),
  }),
);
