// The conversation: what was said, and what is going on, from the server's events. Defines Conversation.
//
// A message is { id, role: user | assistant | call | note, text, time, session } and, where it has them, { who, growing,
// language, aside, overheard, interrupted, failed, turn, latency }; overheard: what somebody said over a reply that went
// on; who: the title of the model that replied; call: a tool that the server has called for the model. Its id is that of
// the server's item; the session is the one that has it.

const MESSAGES_KEPT = 200;
const OVERHEARD = { backchannel: "mhm", echo: "its own echo", noise: "a noise" }; // without words
const CHARACTERS_PER_MS = 0.016; // of speech, until a reply was heard
const CALL_SHOWN = 160; // characters of a call's arguments, and of its result

class Conversation {
  // changed() is called whenever anything did; announce(text) with what a screen reader should say; titleOf(model)
  // names a model.
  constructor({ realtime, playback, recording, percentiles, changed, announce, titleOf }) {
    Object.assign(this, { realtime, playback, recording, percentiles, changed, announce, titleOf });
    this.model = ""; // the session's, as the server has confirmed it
    this.replying = ""; // the model of the newest reply
    this.messages = [];
    this.unanswered = ""; // the message that was typed before there was a session
    this.speechStartedMs = 0; // on the session's clock
    this.charactersPerMs = CHARACTERS_PER_MS;
    this.caption = null; // the last one: a reply is never less heard than before
    this.forgetTurn();
  }

  forgetTurn() {
    this.hearing = false; // somebody speaks
    this.awaited = ""; // the item whose transcript will come, and then a reply that the server begins by itself
    this.responding = false; // a reply was asked for, or is under way
    this.response = ""; // its id, once it has one
    this.speaking = null; // the message that is spoken, until it was heard to its end
    this.committed = []; // the samples of the item that will be committed
    this.unasked = ""; // the item that the server will not answer by itself
    this.wantsReply = false; // ask for one as soon as the last is over
    this.cancelAtStart = false;
    this.turn = {}; // its moments: see stagesOf
  }

  get busy() {
    return this.responding || Boolean(this.awaited) || this.playback.playing;
  }

  // Whether the server works on a turn that would be lost with it.
  get underWay() {
    return this.hearing || this.responding || Boolean(this.awaited);
  }

  clear() {
    this.playback.stop();
    this.messages = [];
    this.recording.pieces = [];
    this.forgetTurn();
    this.changed();
  }

  // Gives a new session all that was said before.
  restore() {
    for (const { id, role, text, growing } of this.messages) {
      if (!(role === "user" || role === "assistant") || growing || !text) continue;
      const content = [{ type: role === "user" ? "input_text" : "output_text", text }];
      this.realtime.send({ type: "conversation.item.create", item: { id, type: "message", role, content } });
    }
    if (this.messages.some(({ id }) => id === this.unanswered)) this.#askForReply();
    this.unanswered = "";
  }

  // A typed message: takes the place of a reply that is under way.
  type(text) {
    this.interrupt();
    const message = this.#add("user", text);
    const item = { id: message.id, type: "message", role: "user", content: [{ type: "input_text", text }] };
    this.turn = { beganAt: performance.now() };
    if (this.realtime.send({ type: "conversation.item.create", item })) this.#askForReply();
    else this.unanswered = message.id; // restore() will send it
  }

  // The session's sound since the last message is one message, and wants a reply if anything is said in it.
  // Args: its samples (a list of Int16Array); when it ended, on performance.now()'s clock.
  commit(samples, beganAt = performance.now()) {
    this.turn = { beganAt };
    this.committed = samples;
    this.awaited = "the item that will be committed";
    this.realtime.send({ type: "input_audio_buffer.commit" });
    this.changed();
  }

  // Ends the reply and its sound.
  interrupt() {
    this.#cancel();
    this.#silence();
  }

  // Forgets an utterance that the server was in the middle of.
  dropSpeech() {
    this.hearing = false;
    this.messages = this.messages.filter(({ role, growing }) => !(role === "user" && growing));
    this.changed();
  }

  // Stops the sound, and tells the server how much of it was heard.
  #silence() {
    const message = this.speaking;
    if (message) {
      const playedMs = this.playback.item === message.id ? this.playback.playedMs() : 0;
      this.speaking = null;
      message.interrupted = true;
      this.recording.cut(message.id, playedMs);
      if (message.session === this.realtime.session) {
        const where = { event_id: "heard", item_id: message.id, content_index: 0 };
        this.realtime.send({ type: "conversation.item.truncate", ...where, audio_end_ms: playedMs });
      }
    }
    this.playback.stop();
    this.changed();
  }

  #cancel() {
    this.wantsReply = false;
    if (this.response) this.realtime.send({ type: "response.cancel", response_id: this.response });
    else if (this.responding || this.awaited) this.cancelAtStart = true;
  }

  #askForReply() {
    if (this.responding || (this.awaited && this.cancelAtStart)) {
      this.wantsReply = true;
      return;
    }
    this.responding = this.realtime.send({ type: "response.create", event_id: "reply" });
    this.changed();
  }

  // The session broke. Sound that has come is still played.
  lost() {
    const lost = this.underWay;
    this.messages = this.messages.filter(({ role, text, growing }) => !growing || (role === "assistant" && text));
    for (const message of this.messages) {
      if (message.growing) Object.assign(message, { growing: false, failed: true });
    }
    if (this.playback.item) this.playback.finish(this.playback.item);
    this.playback.resume(); // nobody will say that the reply goes on
    this.forgetTurn();
    if (lost) this.note("The connection broke in the middle of this turn. Please say it again.");
    this.changed();
  }

  note(text) {
    const message = this.#add("note", text);
    this.announce(text);
    this.changed();
    return message;
  }

  // Another model answers from now on. Of several changes in a row, only the last is told.
  handOver(title) {
    this.interrupt();
    if (this.messages.at(-1)?.handsOver) this.messages.pop();
    if (this.messages.length) this.note(`From here on ${title} answers.`).handsOver = true;
  }

  #add(role, text, id = `item_${crypto.getRandomValues(new Uint32Array(3)).join("")}`) {
    const message = { id, role, text, time: Date.now(), session: this.realtime.session };
    this.messages.push(message);
    if (this.messages.length > MESSAGES_KEPT) this.messages.shift();
    this.changed();
    return message;
  }

  #find(id) {
    return this.messages.find((message) => message.id === id);
  }

  #remove(id) {
    this.messages = this.messages.filter((message) => message.id !== id);
  }

  receive(event) {
    const now = performance.now();
    switch (event.type) {
      case "input_audio_buffer.speech_started":
        this.#silence(); // the server cancels the reply by itself
        this.hearing = true;
        this.speechStartedMs = event.audio_start_ms;
        this.#addSpoken(event.item_id);
        break;
      case "output_audio_buffer.paused": // somebody speaks: the server decides whether the reply goes on
        this.playback.pause();
        break;
      case "output_audio_buffer.resumed":
        this.#goOn(event);
        break;
      case "input_audio_buffer.speech_stopped":
        this.hearing = false;
        this.awaited = event.item_id;
        this.turn = { beganAt: Math.min(now, this.realtime.spokenAt(event.audio_end_ms)), stoppedAt: now };
        for (const samples of this.realtime.samplesBetween(this.speechStartedMs, event.audio_end_ms)) {
          this.recording.add(event.item_id, samples);
        }
        break;
      case "input_audio_buffer.committed":
        this.#addSpoken(event.item_id);
        this.awaited = event.item_id;
        this.turn.stoppedAt ??= now;
        for (const samples of this.committed) this.recording.add(event.item_id, samples);
        if (this.committed.length) this.unasked = event.item_id;
        this.committed = [];
        break;
      case "conversation.item.input_audio_transcription.delta":
        this.#grow(event.item_id, event.delta);
        break;
      case "conversation.item.input_audio_transcription.completed":
        this.#transcribed(event, now);
        break;
      case "conversation.item.input_audio_transcription.failed":
        this.#remove(event.item_id);
        if (this.awaited === event.item_id) this.awaited = "";
        this.note(`What you said could not be transcribed: ${event.error.message}`);
        break;
      case "session.updated":
        this.model = event.session.model;
        break;
      case "response.created":
        this.replying = this.model;
        this.responding = true;
        this.response = event.response.id;
        if (this.cancelAtStart) this.realtime.send({ type: "response.cancel", response_id: this.response });
        this.cancelAtStart = false;
        break;
      case "response.output_item.added":
        if (event.item.type === "message") this.#addReply(event.item.id);
        if (event.item.type === "mcp_call") this.#add("call", event.item.name, event.item.id).growing = true;
        break;
      case "response.output_item.done":
        if (event.item.type === "mcp_call") this.#called(event.item);
        break;
      case "response.output_audio_transcript.delta":
      case "response.output_text.delta":
        this.#write(event, now);
        break;
      case "response.output_audio.delta":
        this.#sound(event.item_id, fromBase64(event.delta));
        break;
      case "response.output_audio.done":
        this.playback.finish(event.item_id);
        break;
      case "response.done":
        this.#done(event.response, now);
        break;
      case "conversation.item.truncated":
        // Says how much is left, but not which words.
        this.realtime.send({ type: "conversation.item.retrieve", event_id: "heard", item_id: event.item_id });
        break;
      case "conversation.item.retrieved":
        this.#heardOnly(event.item);
        break;
      case "error":
        this.#failed(event.error);
        break;
    }
    this.changed();
  }

  #addSpoken(id) {
    if (!this.#find(id)) this.#add("user", "", id).growing = true;
  }

  #addReply(id) {
    if (this.#find(id)) return;
    const message = this.#add("assistant", "", id);
    message.growing = true;
    message.turn = this.turn;
    message.who = this.titleOf(this.replying);
  }

  #grow(id, text) {
    const message = this.#find(id);
    if (message?.growing && !message.interrupted) message.text += text;
  }

  #write({ type, item_id: id, delta }, now) {
    const message = this.#find(id);
    if (!message?.growing || message.interrupted) return;
    message.turn.firstWordAt ??= now;
    if (type === "response.output_audio_transcript.delta") this.speaking = message;
    this.#grow(id, delta);
  }

  #transcribed({ item_id: id, transcript, languages, language = languages?.[0]?.code }, now) {
    const message = this.#find(id);
    if (this.awaited === id) {
      this.awaited = "";
      this.turn.transcribedAt = now;
    }
    if (!message) return;
    if (!transcript.trim()) {
      this.#remove(id);
      this.recording.cut(id, 0);
      this.cancelAtStart = false;
      if (!this.response) this.#over();
      this.note("Nothing was said.");
      return;
    }
    Object.assign(message, { text: transcript.trim(), growing: false, language });
    this.announce(`You: ${message.text}`);
    if (this.unasked !== id) return;
    this.unasked = "";
    this.cancelAtStart = false;
    this.#askForReply();
  }

  #sound(id, samples) {
    const message = this.#find(id);
    if (!message || message.interrupted || !samples.length) return;
    const heardAt = this.playback.add(id, samples);
    message.turn.firstSoundAt ??= heardAt;
    this.recording.add(id, samples);
  }

  #goOn({ item_id: id, reason, transcript }) {
    const message = this.#find(id);
    if (message) message.overheard = [...(message.overheard ?? []), transcript?.trim() || OVERHEARD[reason]];
    this.playback.resume();
  }

  // How much of the reply was heard, up to the end of a word: { id, text, heardTo }, nothing if none is spoken. The sound
  // comes later than the words; until all of it is there, the speed of the last reply counts.
  follow() {
    const message = this.speaking;
    const { item, whole, soundMs } = this.playback;
    if (!message || item !== message.id || !soundMs) return undefined;
    const { id, text, growing } = message;
    if (whole && !growing) this.charactersPerMs = text.length / soundMs;
    const heard = Math.floor(this.playback.playedMs() * this.charactersPerMs);
    const heardTo = heard + text.slice(heard).search(/\s|$/);
    this.caption = { id, text, heardTo: Math.max(heardTo, this.caption?.id === id ? this.caption.heardTo : 0) };
    return this.caption;
  }

  // The reply was heard to its end.
  heard(id) {
    if (this.speaking?.id !== id) return;
    this.speaking = null;
    this.changed();
  }

  #called(item) {
    const message = this.#find(item.id);
    if (!message?.growing) return;
    Object.assign(message, { text: callText(item), growing: false });
    this.announce(message.text);
  }

  #done(response, now) {
    const current = !this.response || response.id === this.response;
    const calls = (response.output ?? []).some(({ type }) => type === "mcp_call");
    for (const { id, type } of response.output ?? []) {
      const message = this.#find(id);
      if (!message || type === "mcp_call") continue;
      message.growing = false;
      this.playback.finish(id);
      if (this.playback.item !== id && this.speaking === message) this.speaking = null; // has no sound, or was heard
      if (response.status === "cancelled") message.interrupted = true;
      const { spoken, unspoken, reason } = response.metadata ?? {};
      if (unspoken) message.aside = `the voice cannot say: ${unspoken}`;
      else if (reason?.startsWith("no voice speaks")) {
        message.aside = `no voice speaks ${languageName(reason.split(" ").pop())}: text only`;
      }
      if (spoken === "false") this.announce(`${message.who}: ${message.text}`);
      if (message.turn?.firstWordAt !== undefined && response.status !== "failed") {
        message.latency = stagesOf({ ...message.turn, doneAt: now });
        this.percentiles.add(message.latency);
      }
      if (!message.text && response.status !== "cancelled") this.#remove(id);
    }
    if (response.status === "failed") {
      this.note(`The reply failed: ${response.status_details?.error?.message ?? "the server does not say why"}`);
    }
    // The server goes on by itself with what the tools have answered.
    if (current && calls && response.status === "completed") this.response = "";
    else if (current) this.#over();
  }

  // No reply is under way any more.
  #over() {
    this.response = "";
    this.responding = false;
    this.cancelAtStart = false;
    if (!this.wantsReply) return;
    this.wantsReply = false;
    this.#askForReply();
  }

  #heardOnly({ id, content }) {
    const message = this.#find(id);
    if (message)
      message.text = (content ?? [])
        .map(({ transcript, text }) => transcript ?? text ?? "")
        .join("")
        .trim();
    if (!message?.text) this.#remove(id);
  }

  #failed({ message, event_id, code }) {
    if (code === "response_cancel_not_active" || event_id === "heard") return; // it was over before our word came
    if (event_id === "reply") this.#over();
    this.note(message);
  }
}

// A call of a tool in one line: "calculate(first: 17, operation: times, second: 23) → 17 times 23 is 391."
function callText({ name, arguments: given, output, error }) {
  const short = (text) => (text.length > CALL_SHOWN ? `${text.slice(0, CALL_SHOWN)}…` : text).replace(/\s+/g, " ");
  let values = given;
  try {
    const shown = (value) => (typeof value === "string" ? value : JSON.stringify(value));
    values = Object.entries(JSON.parse(given)).map(([key, value]) => `${key}: ${shown(value)}`);
    values = values.join(", ");
  } catch {
    // an unfinished call
  }
  const result = error ? `failed: ${error.message ?? error.type}` : (output ?? "ended before its result");
  return `${name}(${short(values)}) → ${short(result)}`;
}

// "de" -> "German"
function languageName(code) {
  try {
    return new Intl.DisplayNames(["en"], { type: "language" }).of(code);
  } catch {
    return code || "this language";
  }
}
