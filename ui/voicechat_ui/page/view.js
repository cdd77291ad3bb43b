// What is seen: messages, status, latency. Draws only what changed: screen readers read every change aloud. All text
// is set as text: a reply that looks like HTML is shown as it is. Defines View.

const AT_THE_END_PX = 60;
const seconds = (value, digits = 1) => `${value.toFixed(digits)} s`;

function element(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

class View {
  constructor() {
    this.drawn = new Map(); // message id -> { item, key }
  }

  get(id) {
    return document.getElementById(id);
  }

  // Returns whether the page is there; Gradio may draw it anew.
  attach() {
    const list = this.get("messages");
    if (list && list !== this.list) {
      this.list = list;
      this.drawn.clear();
    }
    return Boolean(list);
  }

  setText(id, text) {
    const where = this.get(id);
    if (where.textContent !== text) where.textContent = text; // a screen reader reads every change aloud
  }

  // caption: of the reply that is spoken, from Conversation.follow()
  messages(messages, caption) {
    const transcript = this.get("transcript");
    const wasAtTheEnd = transcript.scrollHeight - transcript.scrollTop - transcript.clientHeight < AT_THE_END_PX;
    this.get("empty").hidden = messages.length > 0;
    const ids = new Set(messages.map(({ id }) => id));
    for (const [id, { item }] of this.drawn) {
      if (ids.has(id)) continue;
      item.remove();
      this.drawn.delete(id);
    }
    let before = null;
    for (const message of messages) {
      const { id, role, who, text, growing, language, aside, overheard, interrupted, failed, latency } = message;
      const spoken = caption?.id === id;
      const key = JSON.stringify([who, text, growing, language, aside, overheard, interrupted, failed, latency, spoken]);
      let drawn = this.drawn.get(id);
      if (!drawn) {
        drawn = { item: element("li", `said ${role}`) };
        if (before) before.after(drawn.item);
        else this.list.prepend(drawn.item);
        this.drawn.set(id, drawn);
      }
      if (drawn.key !== key) this.#draw(drawn.item, message);
      if (drawn.key !== key && spoken) this.caption(caption);
      drawn.key = key;
      before = drawn.item;
    }
    if (wasAtTheEnd) transcript.scrollTop = transcript.scrollHeight;
  }

  // Of a reply that is spoken: what was not heard yet is dimmed.
  caption({ id, text, heardTo }) {
    const words = this.drawn.get(id)?.item.querySelector(".words");
    if (!words || words.firstChild?.textContent.length === heardTo) return; // what is selected stays selected
    words.replaceChildren(text.slice(0, heardTo), element("span", "coming", text.slice(heardTo)));
  }

  #draw(item, { role, who, text, growing, language, aside, overheard, interrupted, failed, latency }) {
    item.classList.toggle("growing", Boolean(growing));
    const words = element("p", "words", text || (growing ? "…" : ""));
    if (role === "note" || role === "call") return item.replaceChildren(words);
    const speaker = role === "user" ? element("span", "only-read", "You: ") : element("p", "speaker", who ?? "Reply");
    const tags = [];
    if (language) tags.push(languageName(language));
    if (language) words.lang = language;
    if (aside) tags.push(aside);
    if (overheard) tags.push(`went on after: ${overheard.join(", ")}`);
    if (interrupted) tags.push("interrupted");
    if (failed) tags.push("cut off: the connection broke");
    const parts = [speaker, words];
    if (tags.length) parts.push(element("p", "tags", tags.join(" · ")));
    if (latency) parts.push(this.#latency(latency, item.querySelector("details")?.open));
    item.replaceChildren(...parts);
  }

  // How long the reply took, and on a click where the time went.
  #latency({ stages, toFirstSound, total }, open = false) {
    const box = element("details", "latency");
    box.open = open;
    const waited = toFirstSound ?? Object.values(stages).reduce((sum, value) => sum + value, 0);
    const bar = element("div", "bar");
    bar.setAttribute("aria-hidden", "true"); // the numbers below say the same
    const numbers = element("dl", "numbers");
    const number = (name, words, value) => {
      const pair = element("div", `stage ${name}`);
      pair.append(element("dt", "", words), element("dd", "", seconds(value, 2)));
      numbers.append(pair);
    };
    for (const [stage, , words] of STAGES) {
      if (stages[stage] === undefined) continue;
      const name = stage.replaceAll(" ", "-");
      const segment = element("span", name);
      segment.style.flexGrow = 1000 * stages[stage]; // below 1 in all, the bar would not be filled
      bar.append(segment);
      number(name, words, stages[stage]);
    }
    if (toFirstSound !== undefined) number("total", "until you heard it", toFirstSound);
    number("whole-reply", "until all of it was written", total);
    box.append(element("summary", "", `Answered after ${seconds(waited)}`), bar, numbers);
    return box;
  }

  // rows: of Percentiles
  percentiles(rows) {
    const box = this.get("session-latency");
    box.hidden = rows.length === 0;
    if (!rows.length) return;
    const first = rows.find(({ stage }) => stage === "total") ?? rows.at(-1); // no reply had a sound yet
    const summary = `Usually answers after ${seconds(first.p50)}`;
    if (box.firstElementChild.textContent === summary && box.dataset.count === String(first.count)) return;
    box.dataset.count = first.count;
    box.firstElementChild.textContent = summary;
    box.querySelector("tbody").replaceChildren(
      ...rows.map(({ stage, p50, p95 }) => {
        const row = document.createElement("tr");
        const name = element("th", stage.replaceAll(" ", "-"), STAGE_WORDS[stage]);
        name.scope = "row";
        row.append(name, element("td", "", p50.toFixed(2)), element("td", "", p95.toFixed(2)));
        return row;
      }),
    );
  }

  status(status, text) {
    this.get("status").dataset.status = status;
    this.setText("status-text", text);
  }

  level(level) {
    this.get("status")?.style.setProperty("--level", level.toFixed(2));
  }

  // The models, one button each, and what to expect of the one that answers. A button stays the same element, so that
  // it keeps the focus.
  models({ list, chosen, current }) {
    const group = this.get("models");
    const buttons = new Map([...group.children].map((button) => [button.dataset.model, button]));
    list.forEach(({ id, title, origin }, number) => {
      let button = buttons.get(id);
      buttons.delete(id);
      if (!button) {
        button = element("button", "model");
        button.type = "button";
        button.dataset.model = id;
        button.append(element("span", "name"), element("span", "origin"));
      }
      if (group.children[number] !== button) group.insertBefore(button, group.children[number] ?? null);
      const label = origin ? `${title}, ${origin}` : title;
      if (button.ariaLabel !== label) {
        button.ariaLabel = label;
        button.firstElementChild.textContent = title;
        button.lastElementChild.textContent = origin;
      }
      button.ariaPressed = String(id === chosen);
    });
    for (const button of buttons.values()) button.remove();
    this.get("who").hidden = !list.length;
    this.setText("about", current?.about ?? "");
  }

  // Gradio may not have drawn the settings yet.
  instructions({ instructions, written, chosen }) {
    const box = this.get("instructions");
    if (!box) return;
    if (box !== document.activeElement && box.value !== instructions) box.value = instructions;
    this.get("own-instructions").hidden = !(chosen in written);
  }

  // Closes the menus that are open, but for one. Returns the first that was, if any.
  closeMenus(but = null) {
    const open = [...document.querySelectorAll("#talk .menu[open]")].filter((menu) => menu !== but);
    for (const menu of open) menu.open = false;
    return open[0];
  }

  notice(text) {
    const notice = this.get("notice");
    notice.hidden = !text;
    this.setText("notice", text);
  }

  controls({ active, muted, pushToTalk, holding, busy, model }) {
    const start = this.get("start");
    this.setText("start", active ? "End" : "Start conversation");
    start.classList.toggle("ends", active);
    start.disabled = !active && !model;
    start.hidden = pushToTalk && !active;
    start.classList.toggle("quiet", pushToTalk);
    const hold = this.get("hold");
    hold.hidden = !pushToTalk;
    hold.disabled = !model;
    hold.classList.toggle("held", holding);
    this.setText("hold", holding ? "Release to send" : "Hold to talk");
    const mute = this.get("mute");
    mute.disabled = !active;
    mute.hidden = pushToTalk;
    mute.setAttribute("aria-pressed", muted);
    this.get("push").setAttribute("aria-pressed", pushToTalk);
    this.get("stop").hidden = !busy;
  }
}
