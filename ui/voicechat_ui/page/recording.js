// What is kept for the downloads: the sound of both sides, turn after turn, and the conversation as files.
// Defines Recording, asText, asJson and download.

const RECORDED_S = 15 * 60;
const PAUSE_SAMPLES = RATE_HZ / 2; // between two turns

class Recording {
  constructor() {
    this.pieces = []; // { item, samples }: Int16Array at 24 kHz, in the order in which they were said
  }

  // Adds samples to what an item holds.
  add(item, samples) {
    this.pieces.push({ item, samples });
    const seconds = () => this.pieces.reduce((sum, piece) => sum + piece.samples.length, 0) / RATE_HZ;
    while (this.pieces.length > 1 && seconds() > RECORDED_S) this.pieces.shift();
  }

  // Keeps of an item only its first `ms`: the rest was not heard.
  cut(item, ms) {
    let left = Math.floor((ms * RATE_HZ) / 1000);
    this.pieces = this.pieces.filter((piece) => {
      if (piece.item !== item) return true;
      piece.samples = piece.samples.subarray(0, left);
      left -= piece.samples.length;
      return piece.samples.length > 0;
    });
  }

  // The WAV file: 24 kHz, one channel, 16 bit.
  wav() {
    const parts = [];
    for (const [index, { item, samples }] of this.pieces.entries()) {
      if (index && item !== this.pieces[index - 1].item) parts.push(new Int16Array(PAUSE_SAMPLES));
      parts.push(samples);
    }
    const numBytes = 2 * parts.reduce((sum, part) => sum + part.length, 0);
    const header = new DataView(new ArrayBuffer(44));
    const write = (at, text) => [...text].forEach((letter, i) => header.setUint8(at + i, letter.charCodeAt(0)));
    write(0, "RIFF");
    header.setUint32(4, 36 + numBytes, true);
    write(8, "WAVEfmt ");
    header.setUint32(16, 16, true); // length of this block
    header.setUint16(20, 1, true); // PCM
    header.setUint16(22, 1, true); // channels
    header.setUint32(24, RATE_HZ, true);
    header.setUint32(28, 2 * RATE_HZ, true); // bytes a second
    header.setUint16(32, 2, true); // bytes a sample
    header.setUint16(34, 16, true); // bits a sample
    write(36, "data");
    header.setUint32(40, numBytes, true);
    return new Blob([header, ...parts], { type: "audio/wav" });
  }
}

const SPEAKERS = { user: () => "You", assistant: ({ who }) => who ?? "Reply", call: () => "Tool", note: () => "—" };

function asText(messages) {
  const lines = messages.map((message) => {
    const { role, text, time, interrupted } = message;
    const at = new Date(time).toLocaleTimeString();
    return `[${at}] ${SPEAKERS[role](message)}: ${text}${interrupted ? " [interrupted]" : ""}`;
  });
  return new Blob([`${lines.join("\n\n")}\n`], { type: "text/plain" });
}

// Settings: what the next turn would use. Rows: of Percentiles.
function asJson(messages, settings, rows) {
  const told = messages.map(({ role, who, text, time, language, interrupted, failed, latency }) => ({
    role,
    who,
    text,
    time: new Date(time).toISOString(),
    language,
    interrupted,
    failed,
    latency_s: latency && {
      ...latency.stages,
      total: latency.toFirstSound,
      "whole reply": latency.total,
    },
  }));
  return new Blob([JSON.stringify({ messages: told, settings, latency_s: rows }, null, 2)], {
    type: "application/json",
  });
}

function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}
