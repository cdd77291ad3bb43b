// Puts it together: the buttons, the keys, the settings.
//
// Gradio draws the frame and the pickers, and hands their values to window.voicechat; tests read its meters there.

const SHORTEST_PRESS_MS = 300;
const TRAILING_MS = 120; // what was spoken last is still on its way through the browser when the button is released
const UPLOAD_PIECE_SAMPLES = RATE_HZ; // 1 s
const UPLOAD_PIECES_AT_ONCE = 30;
const SETTLED_MS = 300; // not every letter of the system prompt is sent
const IDLE_MS = 30000;
const STORED_CHARACTERS = 400000;
const MAX_REPLY_TOKENS = 256; // a reply is listened to: this is already half a minute of speech and more

const MODELS_AGAIN_MS = 15000; // after a promotion, another version answers

const settings = { voice: "", speed: 1, temperature: "", turnEnd: "semantic_vad" };
const talk = {
  opened: false, // the server's lists have come
  problem: "", // why there is no conversation
  active: false, // the microphone is wanted
  pushToTalk: false,
  holding: false,
  taking: false, // the microphone's frames are sent
  taken: [], // while the button is held
  uploading: false,
  eventAt: 0, // when something last happened
  settled: null, // called when the server has taken in what an upload has sent so far
  setting: 0, // the timer until changed settings are sent
  stored: "", // what is in the browser's storage
};

const models = new Models();
const view = new View();
const recording = new Recording();
let percentiles = new Percentiles();
const playback = new Playback({ changed: show, played: (item) => conversation.heard(item) });
const microphone = new Microphone({ frame: takeFrame, changed: microphoneChanged });
const realtime = new Realtime({
  model: () => models.chosen,
  opened() {
    updateSession();
    conversation.restore();
  },
  event(event) {
    talk.eventAt = performance.now();
    conversation.receive(event);
    if (event.type === "session.updated") talk.settled?.();
    if (event.type === "input_audio_buffer.committed" && talk.uploading) {
      talk.uploading = false;
      updateSession();
    }
  },
  lost() {
    if (talk.uploading) conversation.note("The connection broke while the recording was sent. Please send it again.");
    talk.uploading = false;
    talk.settled?.();
    conversation.lost();
  },
  ended({ code, message }) {
    const idle = code === "session_idle";
    if (talk.active) conversation.note(idle ? "The conversation ended: nothing was said for a while." : message);
    else if (!idle) conversation.note(message);
    if (!idle) talk.problem = message;
    stopListening();
  },
  changed: show,
});
const conversation = new Conversation({
  realtime,
  playback,
  recording,
  percentiles,
  changed: show,
  announce: (text) => view.setText("announcer", text),
  titleOf: (model) => models.titleOf(model),
});

let drawing = 0;
function show() {
  drawing ||= setTimeout(draw); // many changes, one drawing; not on the next frame: a hidden page has none
}

function draw() {
  drawing = 0;
  if (!view.attach()) return;
  const [status, text] = statusNow({ talk, realtime, microphone, playback, conversation });
  view.status(status, text);
  view.messages(conversation.messages, conversation.follow());
  view.percentiles(percentiles.rows());
  view.models(models);
  view.instructions(models);
  view.controls({ ...talk, muted: Boolean(microphone.muted), busy: conversation.busy, model: models.current });
  Object.assign(window.voicechat, { status, ...playback.meter, playing: playback.playing });
}

function sessionNow() {
  const handsFree = talk.active && !talk.pushToTalk && !talk.uploading;
  const format = { type: "audio/pcm", rate: RATE_HZ };
  return {
    type: "realtime",
    model: models.chosen,
    instructions: models.instructions,
    temperature: settings.temperature === "" ? null : Number(settings.temperature), // null: the model's own
    output_modalities: ["audio"],
    max_output_tokens: MAX_REPLY_TOKENS,
    tools: (models.current?.tools ?? []).map((label) => ({
      type: "mcp",
      server_label: label,
      require_approval: "never", // the operator has listed what may be called
    })),
    audio: {
      input: {
        format,
        transcription: { model: "whisper-1" },
        turn_detection: handsFree ? { type: settings.turnEnd, interruption: "adaptive" } : null,
      },
      output: { format, voice: settings.voice, speed: settings.speed },
    },
  };
}

// Tells the session what it is to be from now on.
function updateSession() {
  clearTimeout(talk.setting);
  realtime.send({ type: "session.update", session: sessionNow() });
}

// ---- the microphone ----

function start() {
  microphone.close(); // whatever was wrong with it is past
  talk.active = true;
  talk.problem = "";
  view.notice("");
  playback.wake();
  realtime.connect();
  updateSession(); // where a typed message has connected before
  microphone.mute(false);
  microphone.open();
  show();
}

// The session stays for a while: it says what was heard of the reply, and a message may be typed.
function end() {
  stopListening();
  conversation.interrupt();
  conversation.dropSpeech();
  realtime.dropSound();
  updateSession();
  if (realtime.state !== "open") realtime.close();
  show();
}

// Gives the session back, which the server has only so many of; the next one is told all that was said.
function closeIfIdle() {
  const idle = !talk.active && !talk.uploading && !conversation.busy && realtime.state === "open";
  if (idle && performance.now() - talk.eventAt > IDLE_MS) realtime.close();
}

function stopListening() {
  talk.active = talk.holding = talk.taking = false;
  microphone.close();
}

function microphoneChanged() {
  if (talk.active && microphone.problem && microphone.state !== "silent") {
    talk.active = talk.holding = talk.taking = false;
    talk.problem = microphone.problem;
    if (conversation.hearing) conversation.dropSpeech();
    realtime.early = [];
    updateSession();
    if (!conversation.busy && realtime.state !== "open") realtime.close();
  }
  show();
}

function takeFrame(samples) {
  if (talk.uploading || (talk.pushToTalk && !talk.taking)) return;
  realtime.sound(samples);
  if (talk.pushToTalk) talk.taken.push(samples);
}

function togglePushToTalk() {
  if (talk.holding) release();
  talk.pushToTalk = !talk.pushToTalk;
  microphone.mute(false);
  if (talk.active) {
    conversation.dropSpeech();
    realtime.dropSound();
    updateSession();
  }
  show();
}

function hold() {
  if (talk.holding || !models.current) return;
  playback.wake();
  conversation.interrupt();
  talk.holding = talk.taking = true;
  talk.taken = [];
  if (!talk.active) start();
  else realtime.connect();
  show();
}

function release() {
  if (!talk.holding) return;
  const releasedAt = performance.now();
  talk.holding = false;
  show();
  setTimeout(() => {
    if (talk.holding || !talk.taking) return; // pressed again, or ended
    talk.taking = false;
    const samples = talk.taken;
    if ((1000 * samples.length * FRAME_SAMPLES) / RATE_HZ < SHORTEST_PRESS_MS) {
      realtime.dropSound();
      if (!talk.problem) conversation.note("That was too short: hold the button while you speak.");
    } else {
      talk.eventAt = releasedAt;
      realtime.later(() => {
        updateSession();
        conversation.commit(samples, releasedAt);
      });
    }
  }, TRAILING_MS);
}

// ---- typing, uploads, downloads ----

function sendMessage() {
  const box = view.get("message");
  const text = box.value.trim();
  if (!text || !models.current) return;
  box.value = "";
  grow(box);
  talk.problem = "";
  talk.eventAt = performance.now();
  playback.wake();
  updateSession(); // what was changed a moment ago counts already
  conversation.type(text);
  realtime.connect();
}

async function upload(file) {
  let samples;
  try {
    samples = await samplesOf(file);
  } catch (error) {
    conversation.note(error.message);
    return;
  }
  conversation.interrupt();
  conversation.dropSpeech();
  talk.problem = "";
  talk.uploading = true;
  realtime.connect();
  realtime.later(async () => {
    const { session } = realtime;
    updateSession();
    realtime.send({ type: "input_audio_buffer.clear" });
    const pieces = [];
    for (let from = 0; from < samples.length; from += UPLOAD_PIECE_SAMPLES) {
      pieces.push(samples.slice(from, from + UPLOAD_PIECE_SAMPLES));
      realtime.sound(pieces.at(-1));
      // The server takes in all that comes: ask it to say something now and then, so as not to bury it.
      if (pieces.length % UPLOAD_PIECES_AT_ONCE === 0) {
        const settled = new Promise((resolve) => (talk.settled = resolve));
        updateSession();
        await settled;
      }
      if (realtime.session !== session || realtime.state !== "open") return; // lost() has said so
    }
    talk.eventAt = performance.now();
    conversation.commit(pieces);
  });
  show();
}

function clear() {
  realtime.close();
  conversation.clear();
  percentiles.latencies = [];
  talk.problem = "";
  talk.uploading = false;
  talk.settled?.();
  if (talk.active) realtime.connect();
  show();
}

// ---- who answers ----

function choose(id) {
  if (id === models.chosen) return;
  models.chosen = id;
  conversation.handOver(models.current.title);
  settingsChanged(0);
}

// The models may have other versions, and titles, than when the page was opened.
async function askForModels() {
  if (document.hidden || !talk.opened) return;
  let list;
  try {
    ({ models: list } = await (await fetch("talk/models")).json());
  } catch {
    return; // the connection's own words say more
  }
  if (!list?.length) return;
  const { chosen, instructions } = models;
  models.take(list);
  if (models.chosen !== chosen) conversation.handOver(models.current.title);
  if (models.chosen !== chosen || models.instructions !== instructions) settingsChanged(0);
  show();
}

// ---- the page ----

const settingsNow = () => ({ ...settings, model: models.chosen, instructions: models.instructions });

function settingsChanged(within_ms) {
  clearTimeout(talk.setting);
  talk.setting = setTimeout(updateSession, within_ms);
  try {
    sessionStorage.setItem("settings", JSON.stringify({ ...settings, model: models.chosen, written: models.written }));
  } catch {
    // As in store().
  }
  show();
}

function store() {
  let kept = conversation.messages.filter(({ growing }) => !growing).map(({ turn, session, ...message }) => message);
  let text = JSON.stringify(kept);
  for (; text.length > STORED_CHARACTERS; text = JSON.stringify(kept)) kept = kept.slice(Math.ceil(kept.length / 4));
  if (text === talk.stored) return;
  talk.stored = text;
  try {
    sessionStorage.setItem("messages", text);
  } catch {
    // A browser that keeps nothing for pages: the conversation ends with the page.
  }
}

function stored(name, otherwise) {
  try {
    return JSON.parse(sessionStorage.getItem(name)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

function writeInstructions(text) {
  models.write(text);
  settingsChanged(SETTLED_MS);
}

function grow(box) {
  box.style.height = "auto";
  box.style.height = `${Math.min(box.scrollHeight, 160)}px`;
}

window.voicechat = {
  status: "starting",
  peak: 0,
  rms: 0,
  playedSeconds: 0,
  playing: false,

  // The settings of before the page was loaded anew; Gradio asks for them first.
  storedSettings: () => stored("settings", {}),

  // The lists have come, or what is wrong with the server.
  opened(problem, list, ...values) {
    if (list.length) models.take(list);
    talk.opened = true;
    talk.problem = problem ?? "";
    this.set(...values);
    show();
  },

  set(voice, speed, temperature, turnEnd) {
    const chosen = { voice: voice ?? "", speed, temperature: temperature ?? "", turnEnd };
    if (JSON.stringify(chosen) === JSON.stringify(settings)) return;
    Object.assign(settings, chosen);
    settingsChanged(SETTLED_MS);
  },

  // A model of the tab on models; null if the service does not have it.
  talkWith(model) {
    if (!model) return;
    models.add(model);
    choose(model.id);
  },
};

const CLICKS = {
  start: () => (talk.active ? end() : start()),
  mute: () => microphone.mute(!microphone.muted),
  push: togglePushToTalk,
  stop: () => conversation.interrupt(),
  upload: () => view.get("recording").click(),
  clear,
  "download-text": () => download(asText(conversation.messages), "conversation.txt"),
  "download-json": () => download(asJson(conversation.messages, settingsNow(), percentiles.rows()), "conversation.json"),
  "download-audio": () => download(recording.wav(), "conversation.wav"),
  "own-instructions": () => writeInstructions(models.current.instructions),
};

for (const gesture of ["pointerdown", "keydown"]) document.addEventListener(gesture, () => playback.wake(), true);

document.addEventListener("click", (event) => {
  const button = event.target.closest?.("#talk button, #settings button");
  const id = button?.id;
  CLICKS[id]?.();
  if (button?.dataset.model) choose(button.dataset.model);
  view.closeMenus(id ? null : event.target.closest?.(".menu"));
  // From a screen reader, which cannot hold a button: the first click presses it, the second releases it.
  if (id === "hold" && event.detail === 0) talk.holding ? release() : hold();
});
document.addEventListener("pointerdown", (event) => {
  if (event.target.id !== "hold" || event.button !== 0) return;
  event.target.setPointerCapture(event.pointerId);
  hold();
});
for (const over of ["pointerup", "pointercancel"])
  document.addEventListener(over, (event) => event.target.id === "hold" && release());
window.addEventListener("blur", release);

const HAS_ITS_OWN_SPACE =
  "input, textarea, select, button, summary, a, [contenteditable], [role=option], [role=combobox]";

function isTalkKey({ key, target }) {
  if (!talk.pushToTalk) return false;
  if (target.id === "hold") return key === " " || key === "Enter";
  return key === " " && view.get("talk")?.checkVisibility() && !target.closest(HAS_ITS_OWN_SPACE);
}

document.addEventListener("keydown", (event) => {
  if (event.target.id === "message" && event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    sendMessage();
  } else if (event.key === "Escape") {
    const menu = view.closeMenus();
    if (menu) menu.firstElementChild.focus();
    else if (conversation.busy) conversation.interrupt();
  } else if (isTalkKey(event)) {
    event.preventDefault();
    if (!event.repeat) hold();
  }
});
document.addEventListener("keyup", (event) => {
  if (!isTalkKey(event)) return;
  event.preventDefault(); // no click
  release();
});
document.addEventListener("submit", (event) => {
  if (event.target.id !== "composer") return;
  event.preventDefault();
  sendMessage();
});
document.addEventListener("input", ({ target }) => {
  if (target.id === "message") grow(target);
  if (target.id === "instructions") writeInstructions(target.value);
});
document.addEventListener("change", ({ target }) => {
  if (target.id !== "recording" || !target.files.length) return;
  upload(target.files[0]);
  target.value = "";
});
window.addEventListener("offline", () => realtime.broken());
window.addEventListener("online", () => realtime.retry());
document.addEventListener("visibilitychange", askForModels);
setInterval(askForModels, MODELS_AGAIN_MS);
window.addEventListener("pagehide", () => {
  store();
  stopListening();
  realtime.close();
});
setInterval(() => {
  view.level(Math.max(microphone.level, playback.meter.level));
  const spoken = conversation.follow();
  if (spoken) view.caption(spoken);
}, 100);
setInterval(() => {
  closeIfIdle();
  store();
  show();
}, 1000);

const { model: chosen = "", written = {} } = stored("settings", {});
Object.assign(models, { chosen, written });
conversation.messages = stored("messages", []).map((message) => ({ ...message, session: 0 }));
new MutationObserver(() => {
  const list = view.get("messages");
  if (!list || list === view.list) return;
  if (!view.list) Microphone.obstacle().then((text) => view.notice(text));
  draw(); // Gradio has drawn the frame, or drawn it anew
}).observe(document, { subtree: true, childList: true });
