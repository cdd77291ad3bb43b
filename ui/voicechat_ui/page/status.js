// The one place that says what is going on, from what is known of each part. Defines statusNow.

const NO_EVENT_MS = 20000;

// What the person is told, as [status, text]. "Listening" only where the microphone's frames arrive at a session.
function statusNow({ talk, realtime, microphone, playback, conversation }) {
  const { state, problem } = realtime;
  const waits = state === "waiting" || (state === "connecting" && realtime.attempts > 0);
  if (waits && problem?.code === "too_many_sessions") {
    return ["busy", "The server has no room for another conversation right now. Trying again …"];
  }
  if (waits) return ["reconnecting", `${problem?.message ?? "The server does not answer."} Reconnecting …`];
  if (state === "connecting") return ["connecting", "Connecting …"];
  const live = microphone.state === "live";
  if (talk.holding)
    return live ? ["hearing", "Hearing you … release to send."] : ["connecting", "Opening the microphone …"];
  if (conversation.hearing) return ["hearing", "Hearing you …"];
  const aside = talk.active && microphone.muted && !talk.pushToTalk ? " Your microphone is muted." : "";
  if (playback.heldBack) return ["speaking", "The browser holds the sound back: click anywhere to hear the reply."];
  if (playback.playing) return ["speaking", `Speaking …${aside}`];
  if (talk.uploading) return ["thinking", "Sending the recording …"];
  if (conversation.busy) {
    const late = performance.now() - talk.eventAt > NO_EVENT_MS;
    return ["thinking", late ? "Thinking … the server takes unusually long." : `Thinking …${aside}`];
  }
  if (talk.active) {
    if (microphone.problem) return ["no microphone", microphone.problem];
    if (state !== "open") return ["connecting", "Connecting …"];
    if (!live) return ["connecting", "Waiting for the microphone: allow it if the browser asks."];
    if (talk.pushToTalk) return ["ready", "Hold the button, or the space bar, while you speak."];
    if (microphone.muted) return ["muted", "Muted: nothing is heard until you unmute."];
    const echo = microphone.echoes ? " Use headphones: this browser does not cancel the echo." : "";
    return ["listening", `Listening …${echo}`];
  }
  if (talk.problem) return [microphone.problem ? "no microphone" : "failed", talk.problem];
  if (!talk.opened) return ["starting", "Starting …"];
  return [
    "ready",
    talk.pushToTalk ? "Ready. Hold the button while you speak, or type." : "Ready. Start the conversation, or type.",
  ];
}
