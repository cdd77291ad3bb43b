// The socket to /v1/realtime: opens it, keeps sound that comes too early, and comes back when it breaks.
// Defines Realtime, and the two ways between samples and base64.

const CONNECT_WITHIN_MS = 10000;
const LONGEST_WAIT_MS = 8000; // between two attempts
const EARLY_KEPT = 250; // frames, 10 s, while there is no session
const SENT_MS_KEPT = 120000; // for the recording and for when a sample was spoken
const LARGEST_BACKLOG_BYTES = 2e6; // half a minute of sound: nobody reads it any more
const MOST_BUSY = 6; // attempts in a row, half a minute, at a server that says to try again later
const CLOSED_BECAUSE = {
  "the API key was revoked": "Your key was revoked or has expired. Ask for a new one, then reload this page.",
  too_slow: "The conversation ended: the connection was too slow for what the server sent.",
  too_fast: "The conversation ended: sound was sent faster than the server could listen.",
};

function toBase64(samples) {
  const bytes = new Uint8Array(samples.buffer, samples.byteOffset, samples.byteLength);
  let text = "";
  for (let start = 0; start < bytes.length; start += 8192) {
    text += String.fromCharCode(...bytes.subarray(start, start + 8192));
  }
  return btoa(text);
}

function fromBase64(text) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  return new Int16Array(bytes.buffer, 0, bytes.length >> 1);
}

class Realtime {
  // model() names the model to connect with; opened() is called with a new session; event(event) with each of its
  // events; lost() when a session broke; ended({code, message}) when the server ended it or will have none;
  // changed() whenever `state` or `problem` did.
  constructor(handlers) {
    this.handlers = handlers;
    this.state = "closed"; // connecting, open, waiting (for the next attempt)
    this.problem = null; // { code, message }: why there is no session
    this.session = 0; // counts them
    this.#forget();
  }

  #forget() {
    this.attempts = 0;
    this.early = [];
    this.sent = []; // { endMs, at, samples }: of the session's sound, by its clock and by performance.now()'s
    this.sentMs = 0;
  }

  // Connects, if that is not under way already.
  connect() {
    if (this.state === "closed" || this.state === "waiting") this.#open();
  }

  // The network is gone, which the socket may learn only much later.
  broken() {
    if (this.state === "open") this.#lost(1006);
  }

  // Does not wait for the time of the next attempt.
  retry() {
    if (this.state === "waiting") this.#open();
  }

  close() {
    const socket = this.socket;
    this.#detach();
    socket?.close(1000);
    this.problem = null;
    this.#forget();
    this.#become("closed");
  }

  // A socket that the other side closes is told about only a moment later.
  get isOpen() {
    return this.state === "open" && this.socket.readyState === WebSocket.OPEN;
  }

  send(event) {
    if (!this.isOpen) return false;
    if (this.socket.bufferedAmount > LARGEST_BACKLOG_BYTES) this.#lost(1006);
    else this.socket.send(JSON.stringify(event));
    return this.state === "open";
  }

  // One piece of sound, spoken until now. It waits while there is no session, unless nobody wants one.
  sound(samples, at = performance.now()) {
    if (this.state === "closed") return;
    if (!this.isOpen) return this.later(() => this.sound(samples, at));
    if (!this.send({ type: "input_audio_buffer.append", audio: toBase64(samples) })) return;
    this.sentMs += (1000 * samples.length) / RATE_HZ;
    this.sent.push({ endMs: this.sentMs, at, samples });
    while (this.sent.length && this.sent[0].endMs < this.sentMs - SENT_MS_KEPT) this.sent.shift();
  }

  // Calls `action` when there is a session that has the sound from before.
  later(action) {
    if (this.isOpen) return action();
    this.early.push(action);
    if (this.early.length > EARLY_KEPT) this.early.shift();
  }

  // Forgets the sound that belongs to no message yet.
  dropSound() {
    this.early = [];
    this.send({ type: "input_audio_buffer.clear" });
  }

  // When the sample at `ms` of the session's sound was spoken, on performance.now()'s clock.
  spokenAt(ms) {
    const frame = this.sent.find(({ endMs }) => endMs >= ms);
    return frame ? frame.at - (frame.endMs - ms) : performance.now();
  }

  // The session's sound from `startMs` to `endMs`, in whole frames.
  samplesBetween(startMs, endMs) {
    const lengthMs = ({ samples }) => (1000 * samples.length) / RATE_HZ;
    return this.sent
      .filter((frame) => frame.endMs > startMs && frame.endMs - lengthMs(frame) < endMs)
      .map(({ samples }) => samples);
  }

  #open() {
    this.#detach();
    this.problem = null;
    const url = new URL(`v1/realtime?model=${encodeURIComponent(this.handlers.model())}`, location);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    const socket = (this.socket = new WebSocket(url));
    this.timer = setTimeout(() => this.#lost(1006), CONNECT_WITHIN_MS);
    socket.onmessage = ({ data }) => this.#receive(JSON.parse(data));
    socket.onclose = ({ code, reason }) => this.#lost(code, reason);
    this.#become("connecting");
  }

  #receive(event) {
    if (event.type === "session.created") {
      clearTimeout(this.timer);
      const early = this.early;
      this.#forget();
      this.problem = null;
      this.session += 1;
      this.#become("open");
      this.handlers.opened();
      for (const action of early) action();
      return;
    }
    if (event.type === "error" && (this.state === "connecting" || event.error.code?.startsWith("session_"))) {
      this.problem = event.error; // says why the socket is closed in a moment
      return;
    }
    this.handlers.event(event);
  }

  #lost(code, reason) {
    const wasOpen = this.state === "open";
    const told = CLOSED_BECAUSE[reason];
    const problem = told ? { code: reason, message: told } : this.problem;
    this.#detach();
    if (wasOpen) this.handlers.lost();
    // 1008: trying again is of no use; 1013: try again later. Without a word about why, or when a session was only too
    // long, it is worth trying too.
    const expired = problem?.code === "session_expired";
    const isBusy = problem?.code === "too_many_sessions" && this.attempts >= MOST_BUSY;
    const isFinal = code === 1000 || code === 1008 || (code === 1013 ? isBusy : problem);
    if (!expired && isFinal) {
      this.#forget();
      this.#become("closed");
      this.handlers.ended(problem ?? { code: "closed", message: "The server ended the conversation." });
      return;
    }
    const wait = Math.min(LONGEST_WAIT_MS, 500 * 2 ** this.attempts++) * (0.75 + Math.random() / 2);
    this.timer = setTimeout(() => this.#open(), wait);
    if (expired) this.problem = null;
    this.#become("waiting");
  }

  #detach() {
    clearTimeout(this.timer);
    if (this.socket) this.socket.onmessage = this.socket.onclose = null;
    if (this.socket?.readyState < WebSocket.CLOSING) this.socket.close();
    this.socket = null;
  }

  #become(state) {
    this.state = state;
    this.handlers.changed();
  }
}
