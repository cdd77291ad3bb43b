// What every client's script uses; service_under_test.py says what the environment holds.
import { z } from 'zod';

export const baseURL = process.env.OPENAI_BASE_URL;
export const realtimeURL = baseURL.replace('http', 'ws') + '/realtime';
export const apiKey = process.env.OPENAI_API_KEY;
export const model = 'smollm2-135m-instruct';
export const Weather = z.object({
  city: z.enum(['Paris', 'Berlin']),
  sky: z.enum(['clear', 'cloudy']),
  celsius: z.number().int().min(-50).max(60),
});
