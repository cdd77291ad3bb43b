// OpenAI's Agents SDK for JavaScript, over Responses and over chat completions.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Agent, OpenAIChatCompletionsModel, OpenAIResponsesModel, run, setTracingDisabled, tool } from '@openai/agents';
import OpenAI from 'openai';
import { z } from 'zod';
import { apiKey, baseURL, model, Weather } from './service_under_test.mjs';

setTracingDisabled(true);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const short = { maxTokens: 64, temperature: 0 };
const calls = { ...short, toolChoice: 'required' };

for (const Model of [OpenAIResponsesModel, OpenAIChatCompletionsModel]) {
  const languageModel = new Model(client, model);
  const called = [];
  const getTemperature = tool({
    name: 'get_temperature',
    description: 'Gives the temperature in a city.',
    parameters: z.object({ city: z.enum(['Paris', 'Berlin']) }),
    execute: ({ city }) => {
      called.push(city);
      return '21 degrees';
    },
  });
  const agent = (more) => new Agent({ name: 'friend', model: languageModel, modelSettings: short, ...more });

  test(`${Model.name}: text`, async () => {
    const result = await run(agent({ instructions: 'Be brief.' }), 'Say hello.');
    assert.ok(result.finalOutput.trim());
    assert.ok(result.rawResponses[0].usage.inputTokens > 0);
  });

  test(`${Model.name}: streamed text`, async () => {
    const result = await run(agent(), 'Say hello.', { stream: true });
    let text = '';
    for await (const piece of result.toTextStream()) text += piece;
    await result.completed;
    assert.ok(text.trim());
    assert.equal(text, result.finalOutput);
  });

  for (const stream of [false, true]) {
    test(`${Model.name}: a tool is called and its result read, ${stream ? 'streamed' : 'whole'}`, async () => {
      called.length = 0;
      const caller = agent({ modelSettings: calls, tools: [getTemperature], toolUseBehavior: 'stop_on_first_tool' });
      const first = await run(caller, 'What is the temperature in Paris?', { stream });
      if (stream) await first.completed;
      assert.equal(first.finalOutput, '21 degrees');
      assert.ok(called.every((city) => ['Paris', 'Berlin'].includes(city)) && called.length > 0);
      const second = await run(agent(), first.history);
      assert.ok(second.finalOutput.trim());
    });

    test(`${Model.name}: structured output, ${stream ? 'streamed' : 'whole'}`, async () => {
      const result = await run(agent({ outputType: Weather }), 'A fine day in Paris.', { stream });
      if (stream) await result.completed;
      Weather.parse(result.finalOutput);
    });
  }

  test(`${Model.name}: tools and structured output together`, async () => {
    const both = { tools: [getTemperature], outputType: Weather };
    const result = await run(agent({ ...both, modelSettings: { ...short, toolChoice: 'none' } }), 'A fine day in Paris.');
    Weather.parse(result.finalOutput);
  });

  test(`${Model.name}: handoff`, async () => {
    const expert = agent({ name: 'Expert', handoffDescription: 'Knows everything.' });
    const clerk = agent({ name: 'Clerk', handoffs: [expert], modelSettings: calls });
    const result = await run(clerk, 'I must speak to the expert.');
    assert.equal(result.lastAgent.name, 'Expert');
  });
}
