// The page's script: plays a turn's speech as it arrives, and says on the status line what is really going on.
//
// The server's part of the truth stands in #server-says (data-*), which Gradio redraws; the rest only the browser knows:
// whether it records, whether sound comes out, whether the server is still there. Tests and curious people find the
// sound's meter in window.voicechat.
(() => {
  const RATE_HZ = 24000;
  const LEAD_S = 0.06; // between arrival and sound, so that the next chunk is there in time
  const ANSWER_WITHIN_MS = 20000; // from the end of a recording to the server's first word about it
  const SHORTEST_RECORDING_MS = 600; // Gradio's recorder cannot decode what is much shorter, and is stuck then
  const SIGN_OF_LIFE_WITHIN_MS = 25000; // the server sends one every ten seconds

  const STATES = {
    starting: "Starting …",
    ready: "Ready. Press Record and speak, or type.",
    transcribing: "Transcribing what you said …",
    thinking: "Thinking …",
    writing: "Writing …",
    done: "Ready. Press Record and speak, or type.",
    stopped: "Stopped.",
    "nothing heard": "I heard nothing: no speech was in the recording. Check the microphone and try again.",
  };
  const GONE = "The server does not answer any more. Check that it runs, then reload the page.";
  const NO_ANSWER = "No answer has come. Check the microphone and that the server runs, then reload the page.";
  const BUSY = ["sending", "transcribing", "thinking", "writing", "speaking"];

  let context = null; // made by the person's first gesture: browsers keep earlier ones silent
  let analyser = null;
  let sources = new Set();
  let playedUntil = 0; // on the context's clock
  let request = null; // of the turn that is heard
  let local = ""; // "", "listening", "sending", NO_ANSWER or GONE: stands above what the server said last
  let answerTimer = 0;
  let recordingSince = 0;

  const voicechat = {
    status: "starting",
    turn: "",
    playing: false,
    peak: 0, // loudest sample that went to the loudspeaker, 0 to 1
    rms: 0, // loudest 85 ms of it
    playedSeconds: 0, // scheduled since the page was opened

    recordingStarted() {
      silence();
      clearTimeout(answerTimer);
      local = "listening";
      recordingSince = performance.now();
      show();
    },
    sent() {
      silence();
      local = "sending";
      clearTimeout(answerTimer);
      answerTimer = setTimeout(() => fail(NO_ANSWER), ANSWER_WITHIN_MS);
      show();
    },
  };
  window.voicechat = voicechat;

  function wakeSound() {
    if (!context) {
      context = new AudioContext({ sampleRate: RATE_HZ });
      analyser = context.createAnalyser();
      analyser.fftSize = 2048;
      analyser.connect(context.destination);
      context.onstatechange = show;
      setInterval(measure, 50);
    }
    if (context.state === "suspended") context.resume();
  }

  function measure() {
    const samples = new Float32Array(analyser.fftSize);
    analyser.getFloatTimeDomainData(samples);
    let peak = 0;
    let sum = 0;
    for (const sample of samples) {
      peak = Math.max(peak, Math.abs(sample));
      sum += sample * sample;
    }
    const rms = Math.sqrt(sum / samples.length);
    voicechat.peak = Math.max(voicechat.peak, peak);
    voicechat.rms = Math.max(voicechat.rms, rms);
    document.getElementById("status")?.style.setProperty("--level", Math.min(1, rms * 5).toFixed(3));
  }

  function play(samples) {
    const buffer = context.createBuffer(1, samples.length, RATE_HZ);
    buffer.copyToChannel(samples, 0);
    const source = context.createBufferSource();
    source.buffer = buffer;
    source.connect(analyser);
    source.onended = () => {
      sources.delete(source);
      show();
    };
    sources.add(source);
    playedUntil = Math.max(playedUntil, context.currentTime + LEAD_S);
    source.start(playedUntil);
    playedUntil += buffer.duration;
    voicechat.playedSeconds += buffer.duration;
    show();
  }

  function silence() {
    request?.abort();
    request = null;
    for (const source of sources) {
      source.onended = null;
      source.stop();
    }
    sources.clear();
    playedUntil = 0;
  }

  async function listen(turn) {
    silence();
    wakeSound();
    const mine = (request = new AbortController());
    try {
      const response = await fetch(`speech/${encodeURIComponent(turn)}`, { signal: mine.signal });
      if (!response.ok) return; // fetched before (a second update of the same turn), or long over
      let oddByte = new Uint8Array(0);
      for (const reader = response.body.getReader(); ; ) {
        const { done, value } = await reader.read();
        if (done) return;
        const bytes = new Uint8Array(oddByte.length + value.length);
        bytes.set(oddByte);
        bytes.set(value, oddByte.length);
        const whole = bytes.length - (bytes.length % 2);
        oddByte = bytes.slice(whole);
        const view = new DataView(bytes.buffer, 0, whole);
        const samples = Float32Array.from({ length: whole / 2 }, (_, i) => view.getInt16(2 * i, true) / 32768);
        if (samples.length) play(samples);
      }
    } catch (error) {
      if (error.name === "AbortError") return;
      fail(GONE);
    }
  }

  function fail(problem) {
    local = problem;
    show();
  }

  // Reads what the server says now. Gradio may skip states in between, so nothing here counts on seeing each of them.
  let said = "";
  let seenRevision = "";
  let lifeTimer = 0;
  function readServer() {
    const element = document.getElementById("server-says");
    if (!element || element.outerHTML === said) return;
    said = element.outerHTML;
    clearTimeout(lifeTimer);
    lifeTimer = setTimeout(() => fail(GONE), SIGN_OF_LIFE_WITHIN_MS);
    const { revision, turn } = element.dataset;
    if (local === GONE) local = "";
    if (revision === seenRevision) {
      show();
      return;
    }
    seenRevision = revision;
    clearTimeout(answerTimer);
    if (local !== "listening") local = "";
    if (turn && turn !== voicechat.turn) {
      voicechat.turn = turn;
      if (element.dataset.state !== "stopped" && local !== "listening") listen(turn);
    }
    show();
  }

  function show() {
    const line = document.getElementById("status");
    if (!line) return;
    const server = document.getElementById("server-says")?.dataset ?? {};
    voicechat.playing = sources.size > 0;
    let status = server.state ?? "starting";
    let text = status === "failed" ? server.problem : STATES[status];
    if (voicechat.playing && status !== "failed") {
      [status, text] = ["speaking", "Speaking …"];
      if (context.state === "suspended") text = "The browser holds the sound back: click anywhere to hear the reply.";
    }
    if (local === "listening") [status, text] = ["listening", "Listening … press Stop when you are done."];
    else if (local === "sending") [status, text] = ["sending", "Sending …"];
    else if (local) [status, text] = ["failed", local];
    voicechat.status = status;
    const label = document.getElementById("status-text");
    if (label.textContent !== text) label.textContent = text; // a screen reader reads every change aloud
    line.dataset.status = status;
    document.body.dataset.busy = BUSY.includes(status);
  }

  // Says why there will be no recording, before the person tries.
  async function checkMicrophone() {
    const notice = document.getElementById("microphone-notice");
    const tell = (why) => {
      notice.hidden = !why;
      notice.textContent = why;
    };
    if (!window.isSecureContext) {
      tell(
        "No microphone: browsers allow it only over HTTPS or on the machine itself. Open the page through HTTPS, or " +
          "forward the port (ssh -L) and open it on localhost. Typing works.",
      );
      return;
    }
    if (!navigator.mediaDevices?.getUserMedia) {
      tell("No microphone: this browser does not offer one to pages. Typing works.");
      return;
    }
    const devices = await navigator.mediaDevices.enumerateDevices();
    if (!devices.some((device) => device.kind === "audioinput")) {
      tell("No microphone: none is connected to this machine. Connect one and reload the page. Typing works.");
      return;
    }
    try {
      const permission = await navigator.permissions.query({ name: "microphone" });
      permission.onchange = () =>
        tell(
          permission.state === "denied"
            ? "No microphone: it is blocked for this page. Allow it in the browser's site settings. Typing works."
            : "",
        );
      permission.onchange();
    } catch {
      // Not every browser lets the page ask; then the recorder itself says what is wrong.
    }
  }

  for (const gesture of ["pointerdown", "keydown"]) document.addEventListener(gesture, wakeSound, true);
  // Before Gradio sees them: clicks, and keys that click.
  window.addEventListener(
    "click",
    (event) => {
      if (event.target.closest("#stop, #clear")) silence();
      const stop = event.target.closest("#recorder .stop-button");
      if (!stop) return;
      const missing = SHORTEST_RECORDING_MS - (performance.now() - recordingSince);
      if (missing > 0) {
        event.stopImmediatePropagation();
        setTimeout(() => stop.click(), missing);
      } else {
        voicechat.sent();
      }
    },
    true,
  );
  window.addEventListener("pagehide", silence);

  new MutationObserver((_, observer) => {
    if (!document.getElementById("status") || !document.getElementById("server-state")) return;
    observer.disconnect();
    checkMicrophone();
    readServer();
    new MutationObserver(readServer).observe(document.getElementById("server-state"), {
      subtree: true,
      childList: true,
      attributes: true,
    });
  }).observe(document, { subtree: true, childList: true });
})();
