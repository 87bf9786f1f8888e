"use strict";
(() => {
  // What traces say is untrusted. It enters the document as text nodes, never as markup, attribute or address.
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const reader = (column) => (column.of ? (at) => column.of[column.at[at]] : (at) => column.values[at]);
  const get = new Map(Object.entries(data.columns).map(([name, column]) => [name, reader(column)]));
  const extras = new Map(Object.entries(data.extras).map(([name, column]) => [name, reader(column)]));
  const all = Array.from({ length: data.num_traces }, (_, at) => at);
  const several = all.some((at) => get.get("teacher")(at) !== get.get("teacher")(0));
  const field = (name, at) => get.get(name)(at);

  const NAMES = { correct: "correct (P)", incorrect: "incorrect (N)", no_answer: "no answer", timeout: "timeout", unverified: "unverified" };
  const SIGNS = { correct: "✓", incorrect: "✗", no_answer: "∅", timeout: "⧖", unverified: "?" };
  const FIELDS = ["problem", "completion", "answer", "reference_answer", "trace_id"];
  const SELECTS = ["teacher", "source", "finish", "loop"];
  const INPUTS = ["min", "max", "smin", "smax"];
  const SNIPPET = 200;
  const LONG = 60000; // a longer text shows its ends, and the rest when asked for
  const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;

  let shown = all;
  let page = 0;
  let selected = -1;
  let timer = 0;
  let resized = 0;

  const count = (number) => number.toLocaleString("en");
  const num = (number, one) => `${count(number)} ${one}${number === 1 ? "" : "s"}`;
  const named = (text) => (text === "" ? "(none)" : text);
  function make(tag, className, ...children) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    node.append(...children);
    return node;
  }
  function draw(tag, attributes, ...children) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }
  function short(text, length) {
    const value = text ?? "–";
    return value.length <= length ? value : value.slice(0, length).replace(/[\ud800-\udbff]$/, "") + "…";
  }
  function tally(ats, read) {
    const counts = new Map();
    for (const at of ats) counts.set(read(at), (counts.get(read(at)) ?? 0) + 1);
    return [...counts].sort((a, b) => b[1] - a[1]);
  }

  // -- filters

  function fill(select, entries) {
    for (const [value, text] of entries) {
      const option = make("option", "", text);
      option.value = value;
      select.append(option);
    }
  }
  function build() {
    for (const [id, name] of [["teacher", "teacher"], ["source", "source"], ["finish", "finish_reason"]]) {
      const entries = tally(all, get.get(name)).map(([value, n]) => [`=${value}`, `${short(named(value), 80)} (${count(n)})`]);
      fill($(id), [["", "all"], ...entries]);
    }
    const counts = new Map(tally(all, get.get("verdict")));
    for (const verdict of data.verdicts.filter((verdict) => counts.has(verdict))) {
      const box = make("input");
      Object.assign(box, { type: "checkbox", value: verdict });
      $("verdicts").append(make("label", `chip ${verdict}`, box, `${NAMES[verdict]} ${count(counts.get(verdict))}`));
    }
    $("length-name").textContent = `Length in ${data.length_unit}`;
    $("histogram-name").textContent = `Length of the completion in ${data.length_unit}`;
    fill($("score"), data.scores.map((name) => [name, name]));
    $("score-band").hidden = data.scores.length === 0;
    const orders = [["", "as stored"], ["length", "length"], ["trace_id", "id"], ["teacher", "teacher"], ["verdict", "verdict"]];
    fill($("sort"), [...orders, ...data.scores.map((name) => [`score ${name}`, name])]);
  }

  const boxes = () => [...$("verdicts").querySelectorAll("input")];
  const number = (id) => ($(id).value === "" ? null : Number($(id).value));
  const within = (value, least, most) =>
    (least === null && most === null) || (value !== null && (least === null || value >= least) && (most === null || value <= most));

  function filter() {
    const verdicts = new Set(boxes().filter((box) => box.checked).map((box) => box.value));
    const text = $("search").value;
    const pattern = text && new RegExp(text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"), "i");
    const wanted = (id) => ($(id).value === "" ? null : $(id).value.slice(1));
    const [teacher, source, finish, loop] = [wanted("teacher"), wanted("source"), wanted("finish"), $("loop").value];
    const score = extras.get($("score").value) ?? (() => null);
    const [min, max, smin, smax] = INPUTS.map(number);
    shown = all.filter((at) =>
      (verdicts.size === 0 || verdicts.has(field("verdict", at))) &&
      (teacher === null || field("teacher", at) === teacher) &&
      (source === null || field("source", at) === source) &&
      (finish === null || field("finish_reason", at) === finish) &&
      (loop === "" || field("looping", at) === (loop === "only")) &&
      within(field("length", at), min, max) &&
      within(score(at), smin, smax) &&
      (!pattern || FIELDS.some((name) => pattern.test(field(name, at) ?? ""))));
    order();
  }
  function order() {
    const by = $("sort").value;
    const sign = $("desc").checked ? -1 : 1;
    if (by === "") {
      if (sign < 0) shown.reverse();
      return;
    }
    const read = by.startsWith("score ") ? extras.get(by.slice(6)) : get.get(by);
    const place = by === "verdict" ? (at) => data.verdicts.indexOf(read(at)) : read;
    shown.sort((a, b) => {
      const [x, y] = [place(a), place(b)];
      if (x === null || y === null) return (x === null) - (y === null); // what has no score comes last, either way
      return x < y ? -sign : x > y ? sign : a - b;
    });
  }

  // -- the address keeps what is shown

  function remember() {
    const hash = new URLSearchParams();
    if ($("search").value) hash.set("q", $("search").value);
    const verdicts = boxes().filter((box) => box.checked).map((box) => box.value);
    if (verdicts.length) hash.set("verdict", verdicts.join(","));
    for (const id of ["teacher", "source", "finish"]) if ($(id).value) hash.set(id, $(id).value.slice(1));
    for (const id of ["loop", "sort", ...INPUTS]) if ($(id).value) hash.set(id, $(id).value);
    if (hash.has("smin") || hash.has("smax")) hash.set("score", $("score").value);
    if ($("desc").checked) hash.set("desc", "1");
    if (selected >= 0) hash.set("trace", field("trace_id", selected));
    history.replaceState(null, "", `#${hash}`);
  }
  function recall() {
    const hash = new URLSearchParams(location.hash.slice(1));
    const choose = (id, value) => {
      $(id).value = value;
      if ($(id).selectedIndex < 0) $(id).selectedIndex = 0; // an address of another page may name what is not here
    };
    $("search").value = hash.get("q") ?? "";
    const verdicts = (hash.get("verdict") ?? "").split(",");
    for (const box of boxes()) box.checked = verdicts.includes(box.value);
    for (const id of ["teacher", "source", "finish"]) choose(id, hash.has(id) ? `=${hash.get(id)}` : "");
    for (const id of ["loop", "sort", "score"]) choose(id, hash.get(id) ?? $(id).options[0]?.value ?? "");
    for (const id of INPUTS) $(id).value = hash.get(id) ?? "";
    $("desc").checked = hash.has("desc");
    if ([...SELECTS, "sort", ...INPUTS].some((id) => $(id).value)) $("more").open = true;
    const wanted = hash.get("trace");
    selected = wanted === null ? -1 : all.findIndex((at) => field("trace_id", at) === wanted);
    update(selected >= 0);
  }
  function update(keep) {
    filter();
    page = 0;
    charts();
    if (keep) select(selected, true);
    else select(wide() && shown.length ? shown[0] : -1, false);
  }
  const wide = () => window.matchMedia("(min-width: 821px)").matches;

  // -- charts

  function charts() {
    const groups = new Map();
    for (const at of shown) {
      const teacher = field("teacher", at);
      if (!groups.has(teacher)) groups.set(teacher, []);
      groups.get(teacher).push(at);
    }
    const largest = [...groups].sort((a, b) => b[1].length - a[1].length);
    const head = make("thead", "", make("tr", "", make("th", "", "teacher"), make("th", "", "verdicts"), make("th", "number", "correct"), make("th", "number", "traces")));
    const body = make("tbody");
    for (const [teacher, ats] of largest.slice(0, 6)) {
      const verdicts = new Map(tally(ats, get.get("verdict")));
      const bar = make("div", "bar");
      for (const verdict of data.verdicts.filter((verdict) => verdicts.has(verdict))) {
        const part = make("span", verdict);
        part.style.width = `${(100 * verdicts.get(verdict)) / ats.length}%`;
        part.title = `${NAMES[verdict]}: ${count(verdicts.get(verdict))}`;
        bar.append(part);
      }
      const judged = ats.length - (verdicts.get("unverified") ?? 0);
      const share = judged ? `${((100 * (verdicts.get("correct") ?? 0)) / judged).toFixed(1)} %` : "–";
      const name = make("th", "", make("bdi", "", short(named(teacher), 80)));
      name.scope = "row";
      body.append(make("tr", "", name, make("td", "", bar), make("td", "number", share), make("td", "number", count(ats.length))));
    }
    const rest = largest.slice(6).reduce((sum, [, ats]) => sum + ats.length, 0);
    if (rest) body.append(make("tr", "", make("th", "", `${num(largest.length - 6, "more teacher")}`), make("td"), make("td"), make("td", "number", count(rest))));
    $("teachers").replaceChildren(make("table", "", head, body));
    $("histogram").replaceChildren(histogram());
  }
  function histogram() {
    const [width, height, floor, roof] = [Math.max(240, $("histogram").clientWidth), 116, 98, 16];
    const bins = data.length_bins;
    const counts = bins.map(() => new Map());
    for (const at of shown) {
      const length = field("length", at);
      const bin = counts[bins.findIndex(([low, high]) => length >= low && (high === null || length < high))];
      bin.set(field("verdict", at), (bin.get(field("verdict", at)) ?? 0) + 1);
    }
    const sums = counts.map((bin) => [...bin.values()].reduce((a, b) => a + b, 0));
    const most = Math.max(1, ...sums);
    const label = ([low, high]) => (high === null ? `${count(low)} or more` : high === low + 1 ? count(low) : `${count(low)} to ${count(high - 1)}`);
    const said = bins.map((bin, at) => `${label(bin)}: ${count(sums[at])}`);
    const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Traces by length in ${data.length_unit}. ${said.join("; ")}` });
    const step = width / bins.length;
    bins.forEach(([low, high], at) => {
      const group = draw("g", {}, draw("title", {}, said[at]));
      let top = floor;
      for (const verdict of data.verdicts.filter((verdict) => counts[at].has(verdict))) {
        const tall = ((floor - roof) * counts[at].get(verdict)) / most;
        top -= tall;
        group.append(draw("rect", { class: verdict, x: at * step + 1, y: top, width: step - 2, height: tall }));
      }
      if (sums[at] === most) group.append(draw("text", { x: (at + 0.5) * step, y: top - 4, "text-anchor": "middle" }, count(most)));
      const first = at === 0 || step > 46 || at % 2 === 0 || high === null;
      if (first) group.append(draw("text", { x: at * step + 1, y: height - 4 }, high === null ? `≥${count(low)}` : count(low)));
      svg.append(group);
    });
    svg.append(draw("line", { class: "axis", x1: 0, x2: width, y1: floor + 0.5, y2: floor + 0.5 }));
    return svg;
  }

  // -- list

  function list() {
    const num_pages = Math.max(1, Math.ceil(shown.length / data.page_size));
    const first = page * data.page_size;
    $("status").textContent = shown.length === data.num_traces ? num(shown.length, "trace") : `${count(shown.length)} of ${num(data.num_traces, "trace")} match`;
    $("page").textContent = `${count(page + 1)} / ${count(num_pages)}`;
    $("back").disabled = page === 0;
    $("forth").disabled = page + 1 >= num_pages;
    $("rows").replaceChildren(...shown.slice(first, first + data.page_size).map(row));
    if (!shown.length) $("rows").append(make("li", "note", "No trace matches. Loosen a filter, or reset them."));
  }
  function row(at) {
    const verdict = field("verdict", at);
    const meta = make("span", "meta", make("span", `verdict ${verdict}`, `${SIGNS[verdict]} ${NAMES[verdict]}`));
    const answers = make("span", "shrink", make("bdi", "", short(field("answer", at), 40)), " / ", make("bdi", "", short(field("reference_answer", at), 40)));
    answers.title = "answer / reference answer";
    meta.append(answers, make("span", "", `${count(field("length", at))} ${data.length_unit === "tokens" ? "tok" : "ch"}`));
    if (field("finish_reason", at) === "length") meta.append(make("span", "flag", "cut off"));
    if (field("looping", at)) meta.append(make("span", "flag", "loop"));
    if (several) meta.append(make("bdi", "shrink teacher", short(named(field("teacher", at)), 60)));
    const button = make("button", "", make("bdi", "snippet", short(field("problem", at), SNIPPET)), meta);
    button.type = "button";
    button.dataset.at = at;
    return make("li", "", button);
  }
  function select(at, open) {
    selected = at;
    const place = shown.indexOf(at);
    if (place >= 0) page = Math.floor(place / data.page_size);
    const focused = $("rows").contains(document.activeElement);
    list();
    for (const button of $("rows").querySelectorAll("button")) {
      const current = Number(button.dataset.at) === at;
      button.setAttribute("aria-current", current);
      if (!current) continue;
      reveal(button);
      if (focused) button.focus({ preventScroll: true });
    }
    document.body.classList.toggle("reading", at >= 0 && open);
    detail(at);
    remember();
  }
  function reveal(button) {
    const rows = $("rows"); // scrolls the list only: scrollIntoView would move the page as well
    const [inner, outer] = [button.getBoundingClientRect(), rows.getBoundingClientRect()];
    if (inner.top < outer.top) rows.scrollTop -= outer.top - inner.top;
    else if (inner.bottom > outer.bottom) rows.scrollTop += inner.bottom - outer.bottom;
  }
  function move(by) {
    if (!shown.length) return;
    const place = shown.indexOf(selected);
    select(shown[place < 0 ? 0 : Math.min(shown.length - 1, Math.max(0, place + by))], true);
  }
  function leave() {
    document.body.classList.remove("reading");
    $("rows").querySelector("[aria-current=true]")?.focus();
  }

  // -- one trace

  function detail(at) {
    const pane = $("detail");
    pane.scrollTop = 0;
    if (at < 0) {
      pane.replaceChildren(make("p", "note", "No trace is selected."));
      return;
    }
    const verdict = field("verdict", at);
    const parts = [top(at), make("p", "judged", make("span", `verdict ${verdict}`, `${SIGNS[verdict]} ${NAMES[verdict]}`))];
    const reason = field("verdict_reason", at);
    if (reason) parts[1].append(": ", make("bdi", "", reason));
    parts.push(answers(at));
    parts.push(make("h3", "", "Problem"), ...text(field("problem", at), "text problem", null));
    parts.push(make("h3", "", "Completion"));
    if (field("mark_note", at)) parts.push(make("p", "note", field("mark_note", at)));
    parts.push(...text(field("completion", at), "text completion", field("mark", at)));
    parts.push(make("h3", "", "How it was made"), facts(at));
    pane.replaceChildren(...parts);
  }
  function top(at) {
    const turn = make("div", "turn");
    const add = (id, name, act) => {
      const button = make("button", "", name);
      Object.assign(button, { type: "button", id, onclick: act });
      turn.append(button);
    };
    const problem = field("problem_id", at);
    const siblings = all.filter((other) => field("problem_id", other) === problem).length;
    add("leave", "Back to the list", leave);
    add("previous", "Previous", () => move(-1));
    add("next", "Next", () => move(1));
    if (siblings > 1) {
      add("siblings", `All ${count(siblings)} of this problem`, () => {
        clear();
        $("search").value = `${problem}@`;
        update(false);
      });
    }
    return make("div", "top", make("h2", "", make("bdi", "", field("trace_id", at))), turn);
  }
  function answers(at) {
    const verdict = field("verdict", at);
    const rule = field("answer_rule", at);
    const entries = [[rule ? `answer, by the rule ${rule}` : "answer", field("answer", at) ?? "none", `answer ${verdict}`]];
    const found = field("mark_answer", at);
    if (found !== null) entries.push([`the rule reads now`, found, ""]);
    entries.push(["reference answer", named(field("reference_answer", at)), ""]);
    return make("dl", "answers", ...entries.map(([name, value, className]) => make("div", "", make("dt", "", make("bdi", "", name)), make("dd", className, make("bdi", "", value)))));
  }
  function text(value, className, mark) {
    const box = make("pre", className);
    box.dir = "auto";
    const [from, to] = [LONG / 2, Math.min(value.length - LONG / 2, mark ? Math.max(LONG / 2, mark[0] - 2000) : Infinity)];
    const pieces = (begin, end) => {
      if (!mark || mark[1] <= begin || mark[0] >= end) return [value.slice(begin, end)];
      return [value.slice(begin, mark[0]), make("mark", "", value.slice(...mark)), value.slice(mark[1], end)];
    };
    if (value.length > LONG && to > from) {
      const rest = make("button", "gap", `show the ${count(to - from)} characters between`);
      rest.type = "button";
      rest.onclick = () => box.replaceChildren(...pieces(0, value.length));
      box.append(...pieces(0, from), rest, ...pieces(to, value.length));
    } else box.append(...pieces(0, value.length));
    const hidden = tally(value.match(HIDDEN) ?? [], (sign) => `U+${sign.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}`);
    if (!hidden.length) return [box];
    const listed = hidden.slice(0, 8).map(([code, n]) => (n === 1 ? code : `${code} × ${count(n)}`));
    return [box, make("p", "note", `Holds characters that do not show: ${listed.join(", ")}${hidden.length > 8 ? ", …" : ""}.`)];
  }
  function facts(at) {
    const entries = [["teacher", named(field("teacher", at))], ["source", named(field("source", at))], ["finish reason", field("finish_reason", at)]];
    const tokens = field("num_tokens", at);
    entries.push(["length", `${tokens < 0 ? "" : `${num(tokens, "token")}, `}${num(field("completion", at).length, "character")}${field("looping", at) ? "; ends in a loop" : ""}`]);
    const seconds = field("seconds", at);
    if (seconds >= 0) entries.push(["seconds", String(seconds)]);
    entries.push(["sampling", sampling(field("sampling", at))]);
    if (field("seed", at) !== -1) entries.push(["seed", String(field("seed", at))]);
    for (const name of ["grader", "grader_version", "engine", "template_hash"]) entries.push([name.replace("_", " "), field(name, at)]);
    for (const [name, read] of extras) entries.push([name, read(at) === null ? "" : String(read(at))]);
    const known = entries.filter(([, value]) => value !== "");
    return make("dl", "facts", ...known.flatMap(([name, value]) => [make("dt", "", make("bdi", "", name)), make("dd", "", make("bdi", "", value))]));
  }
  function sampling(value) {
    try {
      const entries = Object.entries(JSON.parse(value));
      return entries.map(([name, setting]) => `${name} ${JSON.stringify(setting)}`).join(", ");
    } catch {
      return value; // not JSON: as it was stored
    }
  }

  // -- events

  function clear() {
    $("filters").reset();
    for (const id of INPUTS) $(id).value = "";
  }
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  $("filters").addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(() => update(false), 120);
  });
  $("clear").addEventListener("click", () => {
    clear();
    update(false);
  });
  $("rows").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const at = Number(button.dataset.at);
    select(at, true);
    if (wide()) $("rows").querySelector("[aria-current=true]").focus();
    else $("detail").focus();
  });
  for (const [id, by] of [["back", -1], ["forth", 1]]) {
    $(id).addEventListener("click", () => {
      page += by;
      list();
      $("rows").scrollTop = 0;
    });
  }
  $("skip").addEventListener("click", () => $("rows").querySelector("button")?.focus());
  window.addEventListener("hashchange", recall);
  window.addEventListener("resize", () => {
    clearTimeout(resized);
    resized = setTimeout(charts, 120);
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target.matches?.("input:not([type=checkbox]), select, textarea");
    if (event.key === "Escape" && typing) {
      event.preventDefault(); // a search field would empty itself
      event.target.blur();
    } else if (event.key === "Escape") leave();
    if (typing) return;
    if (event.key === "j") move(1);
    else if (event.key === "k") move(-1);
    else if (event.key === "/") {
      event.preventDefault();
      document.body.classList.remove("reading");
      $("search").focus();
      $("search").select();
    }
  });
  build();
  recall();
})();
