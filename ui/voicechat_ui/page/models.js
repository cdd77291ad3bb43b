// Who can answer, who does, and with which instructions. Defines Models.
//
// A model is { id, title, origin, about, instructions, tools }; tools: the labels of the servers of tools that the
// operator lets it use. The server gives them in the order in which to offer them.

class Models {
  constructor() {
    this.list = [];
    this.chosen = ""; // its id
    this.written = {}; // by id: the instructions that the person wrote in place of the model's own
  }

  get current() {
    return this.#find(this.chosen);
  }

  get instructions() {
    return this.written[this.chosen] ?? this.current?.instructions ?? "";
  }

  titleOf(id) {
    return this.#find(id)?.title ?? id;
  }

  // The server's current list, which has at least one. A version of a listed model stays while it is chosen; the list has only champions.
  take(list) {
    const { current } = this;
    this.list = [...list];
    const isVersion = current?.id.includes("@") && this.#find(current.id.slice(0, current.id.lastIndexOf("@")));
    if (isVersion) this.add(current);
    if (!this.current) this.chosen = list[0].id;
  }

  add(model) {
    if (!this.#find(model.id)) this.list.push(model);
  }

  write(text) {
    if (text === this.current?.instructions) delete this.written[this.chosen];
    else this.written[this.chosen] = text;
  }

  #find(id) {
    return this.list.find((model) => model.id === id);
  }
}
