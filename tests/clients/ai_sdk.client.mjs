// Vercel's AI SDK: OpenAI's provider over Responses (its default) and chat, and the provider for services like OpenAI's.
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { test } from 'node:test';
import { createOpenAI } from '@ai-sdk/openai';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import {
  embed,
  experimental_generateSpeech as generateSpeech,
  experimental_transcribe as transcribe,
  generateObject,
  generateText,
  streamObject,
  streamText,
  tool,
} from 'ai';
import { z } from 'zod';
import { apiKey, baseURL, model, Weather } from './service_under_test.mjs';

const openai = createOpenAI({ baseURL, apiKey });
const compatible = createOpenAICompatible({ name: 'here', baseURL, apiKey, supportsStructuredOutputs: true });
// Nothing is stored here: without `store: false` the provider refers to earlier items by their ids alone.
const providerOptions = { openai: { store: false } };
const short = { maxOutputTokens: 64, temperature: 0, maxRetries: 0, providerOptions };
const tools = {
  get_temperature: tool({
    description: 'Gives the temperature in a city.',
    inputSchema: z.object({ city: z.enum(['Paris', 'Berlin']) }),
    execute: async () => '21 degrees',
  }),
};
const question = 'What is the temperature in Paris?';
const first = { toolChoice: 'required' };
const last = { toolChoice: 'none' };
// Two steps: a call, which its result answers, then text.
const twoSteps = {
  tools,
  stopWhen: ({ steps }) => steps.length === 2,
  prepareStep: ({ stepNumber }) => (stepNumber === 0 ? first : last),
};

const models = { responses: openai(model), chat: openai.chat(model), compatible: compatible(model) };
for (const [name, languageModel] of Object.entries(models)) {
  test(`${name}: generateText`, async () => {
    const { text, usage } = await generateText({ model: languageModel, prompt: 'Say hello.', ...short });
    assert.ok(text.trim());
    assert.ok(usage.inputTokens > 0);
  });

  test(`${name}: streamText`, async () => {
    const errors = [];
    const onError = ({ error }) => errors.push(error);
    const { textStream } = streamText({ model: languageModel, prompt: 'Say hello.', onError, ...short });
    const pieces = [];
    for await (const piece of textStream) pieces.push(piece);
    assert.deepEqual(errors, []);
    assert.ok(pieces.length > 1);
  });

  test(`${name}: generateText with a tool`, async () => {
    const { steps, text } = await generateText({ model: languageModel, prompt: question, ...twoSteps, ...short });
    assert.equal(steps[0].toolResults[0].output, '21 degrees');
    assert.ok(text.trim());
  });

  test(`${name}: streamText with a tool`, async () => {
    const errors = [];
    const onError = ({ error }) => errors.push(error);
    const result = streamText({ model: languageModel, prompt: question, onError, ...twoSteps, ...short });
    const kinds = [];
    for await (const part of result.fullStream) kinds.push(part.type);
    assert.deepEqual(errors, []);
    for (const kind of ['tool-input-start', 'tool-input-delta', 'tool-call', 'tool-result', 'text-delta', 'finish']) {
      assert.ok(kinds.includes(kind), `${kind} is missing in ${kinds}`);
    }
  });

  test(`${name}: generateObject`, async () => {
    const { object } = await generateObject({ model: languageModel, schema: Weather, prompt: question, ...short });
    Weather.parse(object);
  });

  test(`${name}: generateObject without a schema`, async () => {
    const answer = await generateObject({ model: languageModel, output: 'no-schema', prompt: `${question} Answer in JSON.`, ...short });
    assert.equal(typeof answer.object, 'object');
  });

  test(`${name}: streamObject`, async () => {
    const onError = ({ error }) => assert.fail(error);
    const result = streamObject({ model: languageModel, schema: Weather, prompt: question, onError, ...short });
    const parts = [];
    for await (const part of result.partialObjectStream) parts.push(part);
    Weather.parse(parts.at(-1));
  });
}

test('embed', async () => {
  const { embedding } = await embed({ model: openai.embedding('vectors'), value: 'A cat sleeps.', maxRetries: 0 });
  assert.ok(embedding.length > 100);
});

test('generateSpeech', async () => {
  const { audio } = await generateSpeech({ model: openai.speech('tts-1'), text: 'Good morning.', voice: 'alloy', maxRetries: 0 });
  assert.ok(audio.uint8Array.length > 1000);
});

test('transcribe', async () => {
  const audio = await readFile(process.env.VOICECHAT_CLIP);
  const { text } = await transcribe({ model: openai.transcription('whisper-1'), audio, maxRetries: 0 });
  assert.ok(text.trim());
});
