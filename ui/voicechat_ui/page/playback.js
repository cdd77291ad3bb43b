// The loudspeaker: one reply at a time, without gaps, and how much of it was really played. Defines Playback.

const LEAD_S = 0.06; // between arrival and sound, so that the next piece is there in time

class Playback {
  // changed() is called when sound begins or ends; played(item) when a reply was heard to its end.
  constructor({ changed, played }) {
    Object.assign(this, { changed, played });
    this.item = "";
    this.whole = false; // no more of the item will come
    this.paused = false;
    this.pieces = []; // of the item: { start, seconds } on the context's clock
    this.sources = new Set();
    this.until = 0;
    this.meter = { peak: 0, rms: 0, playedSeconds: 0, level: 0 }; // since the page was opened, but for the level
  }

  get playing() {
    return this.sources.size > 0;
  }

  get heldBack() {
    return this.playing && !this.paused && this.context.state === "suspended";
  }

  // Browsers keep sound silent that no gesture of the person has allowed.
  wake() {
    if (!this.context) {
      this.context = new AudioContext({ sampleRate: RATE_HZ });
      this.analyser = this.context.createAnalyser();
      this.analyser.fftSize = 2048;
      this.analyser.connect(this.context.destination);
      this.context.onstatechange = () => this.changed();
      setInterval(() => this.#measure(), 50);
    }
    if (this.context.state === "suspended" && !this.paused) this.context.resume();
  }

  // The sound stands still, and goes on at the same place. What arrives meanwhile waits: the context's clock stands.
  pause() {
    if (!this.context || !this.item) return;
    this.paused = true;
    this.context.suspend();
    this.changed();
  }

  resume() {
    if (!this.paused) return;
    this.paused = false;
    this.context.resume(); // onstatechange tells of it
  }

  // Samples: Int16Array. Returns when the first of them leaves the loudspeaker, on performance.now()'s clock; nothing
  // where the browser holds the sound back.
  add(item, samples) {
    this.wake();
    if (item !== this.item) {
      this.stop();
      this.item = item;
    }
    const buffer = this.context.createBuffer(1, samples.length, RATE_HZ);
    buffer.copyToChannel(
      Float32Array.from(samples, (sample) => sample / 32768),
      0,
    );
    const source = this.context.createBufferSource();
    source.buffer = buffer;
    source.connect(this.analyser);
    source.onended = () => {
      this.sources.delete(source);
      this.#endIfOver();
      this.changed();
    };
    this.sources.add(source);
    const start = Math.max(this.until, this.context.currentTime + LEAD_S);
    source.start(start);
    this.until = start + buffer.duration;
    this.pieces.push({ start, seconds: buffer.duration });
    this.meter.playedSeconds += buffer.duration;
    this.changed();
    if (this.context.state !== "running") return undefined;
    return performance.now() + 1000 * (start - this.context.currentTime + this.#latency());
  }

  // No more of the item will come.
  finish(item) {
    if (item !== this.item) return;
    this.whole = true;
    this.#endIfOver();
  }

  // Milliseconds of the item that have arrived.
  get soundMs() {
    return 1000 * this.pieces.reduce((sum, { seconds }) => sum + seconds, 0);
  }

  // Milliseconds of the item that have left the loudspeaker.
  playedMs() {
    if (!this.context) return 0;
    const now = this.context.currentTime - this.#latency();
    const seconds = this.pieces.reduce(
      (sum, piece) => sum + Math.max(0, Math.min(piece.seconds, now - piece.start)),
      0,
    );
    return Math.floor(1000 * seconds);
  }

  stop() {
    for (const source of this.sources) {
      source.onended = null;
      source.stop();
    }
    this.sources.clear();
    this.#forget();
    this.resume();
    this.changed();
  }

  #endIfOver() {
    if (!this.whole || this.playing) return;
    const item = this.item;
    this.#forget();
    this.played(item);
  }

  #forget() {
    this.item = "";
    this.whole = false;
    this.pieces = [];
    this.until = 0;
  }

  #latency() {
    return this.context.outputLatency || this.context.baseLatency || 0;
  }

  #measure() {
    const samples = new Float32Array(this.analyser.fftSize);
    this.analyser.getFloatTimeDomainData(samples);
    const rms = Math.sqrt(samples.reduce((sum, sample) => sum + sample * sample, 0) / samples.length);
    const peak = samples.reduce((loudest, sample) => Math.max(loudest, Math.abs(sample)), 0);
    this.meter.level = Math.min(1, rms * 5);
    this.meter.rms = Math.max(this.meter.rms, rms);
    this.meter.peak = Math.max(this.meter.peak, peak);
  }
}
