// Where the time of a turn went, as this browser saw it. Defines stagesOf, Percentiles and STAGES.

// In the order in which they follow each other: the name in downloads, the moment that ends it, and for people.
const STAGES = [
  ["endpoint", "stoppedAt", "noticing that you had finished"],
  ["transcription", "transcribedAt", "writing your words down"],
  ["first word", "firstWordAt", "finding the first word"],
  ["first sound", "firstSoundAt", "speaking it"],
];
const STAGE_WORDS = { ...Object.fromEntries(STAGES.map(([name, , words]) => [name, words])), total: "all together" };

// Args: a turn's moments (performance.now()); beganAt is the end of what was said, or when it was typed.
// Returns: { stages: { name: seconds }, toFirstSound, total }, without what the turn did not have.
function stagesOf(turn) {
  const stages = {};
  let until = turn.beganAt;
  for (const [stage, moment] of STAGES) {
    if (turn[moment] === undefined) continue;
    stages[stage] = Math.max(0, turn[moment] - until) / 1000; // events may overtake each other
    until = Math.max(until, turn[moment]);
  }
  const since = (at) => (at === undefined ? undefined : (at - turn.beganAt) / 1000);
  return { stages, toFirstSound: since(turn.firstSoundAt), total: since(turn.doneAt) };
}

class Percentiles {
  constructor() {
    this.latencies = [];
  }

  add(latency) {
    this.latencies.push(latency);
  }

  // Rows of { stage, count, p50, p95 } in seconds; the total is from the end of the speech to the first sound.
  rows() {
    const values = { total: this.latencies.map(({ toFirstSound }) => toFirstSound) };
    for (const [stage] of STAGES) values[stage] = this.latencies.map(({ stages }) => stages[stage]);
    return Object.entries(values).flatMap(([stage, all]) => {
      const sorted = all.filter((value) => value !== undefined).sort((a, b) => a - b);
      const at = (share) => sorted[Math.ceil(share * sorted.length) - 1]; // nearest rank
      return sorted.length ? [{ stage, count: sorted.length, p50: at(0.5), p95: at(0.95) }] : [];
    });
  }
}
