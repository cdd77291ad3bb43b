// OpenAI's Agents SDK for JavaScript, in real time over a WebSocket.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { RealtimeAgent, RealtimeSession, tool } from '@openai/agents-realtime';
import { z } from 'zod';
import { apiKey, model, realtimeURL } from './service_under_test.mjs';

// Opens a session, sends a message, and waits for the event `name`; an error of the session fails.
async function until(name, agent, config, watch = () => {}) {
  const session = new RealtimeSession(agent, { transport: 'websocket', model, config, tracingDisabled: true });
  try {
    return await new Promise((resolve, reject) => {
      session.on('error', ({ error }) => reject(new Error(JSON.stringify(error))));
      session.on(name, (...event) => resolve(event));
      watch(session);
      session
        .connect({ apiKey, url: `${realtimeURL}?model=${model}` })
        .then(() => session.sendMessage('What is the temperature in Paris?'), reject);
    });
  } finally {
    session.close();
  }
}

const getTemperature = tool({
  name: 'get_temperature',
  description: 'Gives the temperature in a city.',
  parameters: z.object({ city: z.enum(['Paris', 'Berlin']) }),
  execute: () => '21 degrees',
});

test('speech', async () => {
  let numBytes = 0;
  const agent = new RealtimeAgent({ name: 'friend', instructions: 'Be brief.', tools: [getTemperature] });
  await until('audio_stopped', agent, { toolChoice: 'none' }, (session) =>
    session.on('audio', ({ data }) => (numBytes += data.byteLength)),
  );
  assert.ok(numBytes > 4800);
});

test('a tool is called', async () => {
  const agent = new RealtimeAgent({ name: 'friend', tools: [getTemperature] });
  const [, , called, result] = await until('agent_tool_end', agent, { toolChoice: 'required' });
  assert.equal(called.name, 'get_temperature');
  assert.equal(result, '21 degrees');
});
