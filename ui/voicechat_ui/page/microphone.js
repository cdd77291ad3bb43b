// The microphone: 24 kHz frames of 40 ms, and the truth about whether any come. Defines Microphone.

const RATE_HZ = 24000;
const FRAME_SAMPLES = 960;
const FRAMES_MISSING_AFTER_MS = 1500;

const NO_MICROPHONE = {
  plain:
    "No microphone: browsers allow it only over HTTPS or on the machine itself. Open the page through HTTPS, or " +
    "forward the port (ssh -L) and open it on localhost. Typing works.",
  unsupported: "No microphone: this browser does not offer one to pages, or is too old. Typing works.",
  denied: "No microphone: it is blocked for this page. Allow it in the browser's site settings. Typing works.",
  none: "No microphone: none is connected to this machine. Connect one and start again. Typing works.",
  busy: "No microphone: another program holds it. Close that program and start again. Typing works.",
  ended: "The microphone is gone: it was unplugged, or the browser took it away. Start again. Typing works.",
  silent: "No sound comes from the microphone: the system has muted or stopped it. Check it. Typing works.",
};
const REFUSALS = {
  NotAllowedError: "denied",
  SecurityError: "denied",
  NotFoundError: "none",
  OverconstrainedError: "none",
  NotReadableError: "busy",
  AbortError: "busy",
};

// Band-limited interpolation by a windowed sinc, for browsers that do not record at our rate. Its source goes into the
// worklet, so it may use nothing from outside.
function resampler(fromHz, toHz) {
  if (fromHz === toHz) return (samples) => samples;
  const phases = 1024;
  const step = fromHz / toHz; // input samples from one output sample to the next
  const cutoff = 0.92 * Math.min(1, 1 / step); // of the input's highest frequency
  const reach = Math.ceil(20 * Math.max(1, step)); // input samples to either side
  const kernel = (x) => {
    if (Math.abs(x) >= reach) return 0;
    const window = 0.42 + 0.5 * Math.cos((Math.PI * x) / reach) + 0.08 * Math.cos((2 * Math.PI * x) / reach);
    return x === 0 ? cutoff : (window * Math.sin(Math.PI * cutoff * x)) / (Math.PI * x);
  };
  const tables = Array.from({ length: phases + 1 }, (_, phase) =>
    Float32Array.from({ length: 2 * reach }, (_, tap) => kernel(tap - reach + 1 - phase / phases)),
  );
  let kept = new Float32Array(2 * reach);
  let place = reach; // of the next output sample, among the kept and the new samples
  return (samples) => {
    const input = new Float32Array(kept.length + samples.length);
    input.set(kept);
    input.set(samples, kept.length);
    const output = [];
    for (; Math.floor(place) + reach < input.length; place += step) {
      const whole = Math.floor(place);
      const table = tables[Math.round((place - whole) * phases)];
      let sum = 0;
      for (let tap = 0; tap < table.length; tap++) sum += input[whole - reach + 1 + tap] * table[tap];
      output.push(sum);
    }
    const done = Math.floor(place) - reach;
    kept = input.slice(done);
    place -= done;
    return output;
  };
}

const CAPTURE = `
${resampler}
registerProcessor("capture", class extends AudioWorkletProcessor {
  frame = new Int16Array(${FRAME_SAMPLES});
  filled = 0;
  resample = resampler(sampleRate, ${RATE_HZ});
  process([[samples]]) {
    for (const sample of samples ? this.resample(samples) : []) {
      this.frame[this.filled++] = Math.max(-32768, Math.min(32767, Math.round(32767 * sample)));
      if (this.filled === this.frame.length) {
        this.port.postMessage(this.frame);
        this.filled = 0;
      }
    }
    return true;
  }
});`;

class Microphone {
  // frame(Int16Array) is called every 40 ms; changed() whenever `state` or `problem` did.
  constructor({ frame, changed }) {
    Object.assign(this, { frame, changed });
    this.state = "closed"; // opening, live, or a key of NO_MICROPHONE
    this.level = 0; // 0 to 1, of the last frame
    this.echoes = false; // the browser does not cancel the loudspeaker's sound
  }

  get problem() {
    return NO_MICROPHONE[this.state] ?? "";
  }

  // What can be known before the person tries; "" where nothing speaks against it.
  static async obstacle() {
    if (!window.isSecureContext) return NO_MICROPHONE.plain;
    if (!navigator.mediaDevices?.getUserMedia) return NO_MICROPHONE.unsupported;
    try {
      const { state } = await navigator.permissions.query({ name: "microphone" });
      return state === "denied" ? NO_MICROPHONE.denied : "";
    } catch {
      return ""; // not every browser lets the page ask
    }
  }

  async open() {
    this.close();
    if (!window.isSecureContext) return this.#become("plain");
    if (!navigator.mediaDevices?.getUserMedia) return this.#become("unsupported");
    this.#become("opening");
    const opening = (this.opening = {}); // another open() or close() meanwhile makes this one void
    let stream;
    try {
      const audio = { channelCount: 1, echoCancellation: true, noiseSuppression: true, autoGainControl: true };
      stream = await navigator.mediaDevices.getUserMedia({ audio });
    } catch (error) {
      if (this.opening === opening) this.#become(REFUSALS[error.name] ?? "busy");
      return;
    }
    const context = await this.#capture(stream).catch(() => null); // a browser without AudioWorklet
    if (this.opening !== opening || !context) {
      stream.getTracks().forEach((track) => track.stop());
      context?.close();
      if (!context) this.#become("unsupported");
      return;
    }
    Object.assign(this, { stream, context });
    const [track] = stream.getTracks();
    this.echoes = track.getSettings().echoCancellation === false;
    track.enabled = !this.muted;
    track.onended = () => this.#become("ended");
    track.onmute = () => this.#become("silent");
    this.heardAt = performance.now();
    this.watch = setInterval(() => {
      const missing = performance.now() - this.heardAt > FRAMES_MISSING_AFTER_MS;
      if (missing && this.state !== "ended") this.#become("silent");
    }, 500);
  }

  async #capture(stream) {
    let context = new AudioContext({ sampleRate: RATE_HZ });
    let source;
    try {
      source = context.createMediaStreamSource(stream);
    } catch {
      context.close(); // this browser wants the microphone's own rate
      context = new AudioContext();
      source = context.createMediaStreamSource(stream);
    }
    const module = URL.createObjectURL(new Blob([CAPTURE], { type: "text/javascript" }));
    await context.audioWorklet.addModule(module);
    URL.revokeObjectURL(module);
    const capture = new AudioWorkletNode(context, "capture", {
      numberOfOutputs: 0,
      channelCount: 1,
      channelCountMode: "explicit",
    });
    capture.port.onmessage = ({ data }) => {
      if (this.context !== context || this.state === "ended") return;
      this.heardAt = performance.now();
      this.level = Math.min(1, data.reduce((loudest, sample) => Math.max(loudest, Math.abs(sample)), 0) / 16384);
      if (!this.stream.getTracks()[0].muted) this.#become("live");
      this.frame(data);
    };
    source.connect(capture);
    context.resume();
    return context;
  }

  mute(muted) {
    this.muted = muted; // the browser then gives silence, so that an utterance that was begun comes to its end
    this.stream?.getTracks().forEach((track) => (track.enabled = !muted));
    this.changed();
  }

  close() {
    clearInterval(this.watch);
    this.opening = null;
    this.stream?.getTracks().forEach((track) => {
      track.onended = null;
      track.stop();
    });
    this.context?.close();
    this.stream = this.context = null;
    this.level = 0;
    this.#become("closed");
  }

  #become(state) {
    if (this.state === state) return;
    this.state = state;
    this.changed();
  }
}
