// A recording that somebody made before, as samples. Defines samplesOf.

const LARGEST_UPLOAD_BYTES = 100e6;
const LONGEST_UPLOAD_S = 600;

// Returns Int16Array at 24 kHz, one channel. Throws an Error that says what is wrong and what to do.
async function samplesOf(file) {
  if (file.size > LARGEST_UPLOAD_BYTES) throw new Error("The recording is larger than 100 MB: send a shorter one.");
  let sound;
  try {
    // Also brings it to the context's rate.
    sound = await new OfflineAudioContext(1, 1, RATE_HZ).decodeAudioData(await file.arrayBuffer());
  } catch {
    throw new Error(`This browser finds no sound in ${file.name}: send WAV, MP3, Ogg, FLAC or WebM.`);
  }
  if (sound.duration > LONGEST_UPLOAD_S)
    throw new Error("The recording is longer than 10 minutes: send a shorter one.");
  const samples = new Int16Array(sound.length);
  const channels = Array.from({ length: sound.numberOfChannels }, (_, channel) => sound.getChannelData(channel));
  for (let n = 0; n < samples.length; n++) {
    const mean = channels.reduce((sum, channel) => sum + channel[n], 0) / channels.length;
    samples[n] = Math.max(-32768, Math.min(32767, Math.round(32767 * mean)));
  }
  return samples;
}
