// Keeps the status page up to date, draws its charts, and does what the admin token allows.
// All words and numbers come from the server; here they are only put in their places.
(() => {
  "use strict";

  const POLL_MS = 2000;
  const PATIENCE_MS = 5000;
  const HISTORY_EVERY_MS = 5000;
  const HEIGHT = 180;
  const ROWS = 15;
  const PAGE = 50;

  const byId = (id) => document.getElementById(id);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const number = new Intl.NumberFormat();
  const short = new Intl.NumberFormat(undefined, { notation: "compact" });
  const clock = new Intl.DateTimeFormat(undefined, { timeStyle: "short" });
  const moment = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });

  async function ask(path, options = {}) {
    return fetch(path, { cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS), ...options });
  }

  // -- what the server says, again and again ------------------------------------------------

  function localTimes(root) {
    for (const time of all("time[datetime]", root)) {
      time.textContent = moment.format(new Date(time.dateTime));
    }
  }

  function connected(text, lost) {
    const said = byId("connection");
    if (said.textContent !== text) said.textContent = text;
    document.body.classList.toggle("lost", lost);
  }

  let lostSince = null;

  async function refresh() {
    try {
      const answer = await ask("/");
      if (!answer.ok) throw new Error(String(answer.status));
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      localTimes(fresh);
      document.title = fresh.title;
      for (const part of all("[data-live]")) {
        const now = fresh.getElementById(part.id);
        if (now !== null) replace(part, now);
      }
      lostSince = null;
      connected("live", false);
    } catch {
      lostSince = lostSince ?? new Date();
      document.title = "No answer · Tillpost";
      connected(`No answer from the collector since ${clock.format(lostSince)}: what you see is old`, true);
    }
  }

  // only what changed, so that a screen reader does not read out the rest again
  function replace(old, fresh) {
    if (old.innerHTML === fresh.innerHTML) return;
    const before = [...old.children];
    const after = [...fresh.children];
    const alike =
      before.length > 0 &&
      before.length === after.length &&
      before.every((child, i) => child.tagName === after[i].tagName) &&
      old.childNodes.length === before.length &&
      fresh.childNodes.length === after.length;
    if (!alike) {
      old.replaceChildren(...fresh.childNodes);
      return;
    }
    before.forEach((child, i) => {
      child.className = after[i].className;
      if (child.matches("data, meter, time")) child.replaceWith(after[i]);
      else replace(child, after[i]);
    });
  }

  // -- charts -------------------------------------------------------------------------------

  const charts = new Map();
  // a count belongs to the whole minute before its point
  const steps = { width: 2, points: { show: false }, paths: uPlot.paths.stepped({ align: -1 }) };
  let minutes = 60;
  let drawn = null;

  function colour(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  }

  function axes() {
    const plain = {
      stroke: colour("--muted"),
      grid: { stroke: colour("--line"), width: 1 },
      ticks: { show: false },
      font: "12px system-ui, sans-serif",
    };
    const hours = (_, ticks) => ticks.map((tick) => clock.format(new Date(tick * 1000)));
    const counts = (_, ticks) => ticks.map((tick) => short.format(tick));
    return [
      { ...plain, values: hours, space: 70, size: 26 },
      { ...plain, values: counts, size: 48, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 1e6, 1e7] },
    ];
  }

  function draw(id, series, data) {
    const box = byId(id);
    charts.get(id)?.destroy();
    const options = {
      width: Math.max(200, box.clientWidth),
      height: HEIGHT,
      axes: axes(),
      legend: { show: false },
      cursor: { show: false },
      scales: {
        x: { range: () => [drawn.now - minutes * 60, drawn.now] },
        y: { range: (_, low, high) => [0, Math.max(4, (high ?? 0) * 1.1)] },
      },
      series: [{}, ...series],
    };
    charts.set(id, new uPlot(options, data, box));
  }

  function drawAll() {
    if (drawn === null) return;
    const { at, accepted, delivered, pending } = drawn;
    draw(
      "rates",
      [
        { ...steps, stroke: colour("--delivered"), fill: colour("--delivered-fill") },
        { ...steps, stroke: colour("--accepted"), dash: [5, 3] },
      ],
      [at, delivered, accepted],
    );
    draw("backlog", [{ width: 2, points: { show: false }, stroke: colour("--backlog"), fill: colour("--backlog-fill") }], [at, pending]);
    const last = at.length - 1;
    byId("rates").setAttribute(
      "aria-label",
      `Records per minute: in this minute ${accepted[last]} came in and ${delivered[last]} were delivered`,
    );
    byId("backlog").setAttribute(
      "aria-label",
      `Records waiting: ${pending[last]} now, ${Math.max(...pending)} at most in what is shown`,
    );
    const rows = [];
    for (let i = last; i >= Math.max(0, last - ROWS + 1); i--) {
      const row = document.createElement("tr");
      for (const text of [clock.format(new Date(at[i] * 1000)), ...[accepted[i], delivered[i], pending[i]].map((n) => number.format(n))]) {
        row.append(Object.assign(document.createElement("td"), { textContent: text }));
      }
      rows.push(row);
    }
    byId("minutes").replaceChildren(...rows);
  }

  let remembered = -Infinity;

  async function history() {
    if (performance.now() - remembered < HISTORY_EVERY_MS) return;
    remembered = performance.now();
    try {
      const answer = await ask(`/history.json?minutes=${minutes}`);
      if (!answer.ok) return;
      const found = await answer.json();
      drawn = { ...found, now: found.at[found.at.length - 1] };
      drawAll();
    } catch {
      remembered = -Infinity; // `refresh` tells that nobody answers
    }
  }

  for (const button of all("[data-minutes]")) {
    button.addEventListener("click", () => {
      minutes = Number(button.dataset.minutes);
      for (const each of all("[data-minutes]")) each.setAttribute("aria-pressed", String(each === button));
      remembered = -Infinity;
      history();
    });
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  new ResizeObserver(() => {
    for (const [id, chart] of charts) chart.setSize({ width: Math.max(200, byId(id).clientWidth), height: HEIGHT });
  }).observe(byId("rates"));

  // -- what the admin token allows ----------------------------------------------------------

  let token = null; // here and nowhere else: a reload forgets it
  let next = null;

  function say(text) {
    byId("said").textContent = text;
  }

  async function operate(path, body) {
    const headers = { Authorization: `Bearer ${token}` };
    const options = body === undefined ? { headers } : { method: "POST", headers, body: JSON.stringify(body) };
    let answer;
    try {
      answer = await ask(path, options);
    } catch {
      say("The collector does not answer. Try again.");
      return null;
    }
    if (answer.status === 403) {
      lock();
      say("That is not the admin token.");
      return null;
    }
    if (!answer.ok) {
      const found = await answer.json().catch(() => ({}));
      say(found.message ?? `The collector answered ${answer.status}.`);
      return null;
    }
    return answer.json();
  }

  function show(letter) {
    const item = byId("letter").content.cloneNode(true);
    const part = (name) => item.querySelector(`[data-letter=${name}]`);
    const button = (name) => item.querySelector(`[data-act=${name}]`);
    part("title").textContent = `No. ${letter.id}`;
    part("reason").textContent = letter.reason;
    const died = moment.format(new Date(letter.died_at));
    part("where").textContent =
      `${letter.kind} by ${letter.identifier}, refused ${died}.` +
      (letter.superseded ? ` A newer record has replaced it, so it cannot be retried here.` : "") +
      ` The record itself: tillpost dead show ${letter.id}`;
    button("retry").disabled = letter.superseded;
    button("retry").setAttribute("aria-label", `Retry No. ${letter.id}`);
    button("discard").setAttribute("aria-label", `Discard No. ${letter.id}`);
    button("retry").addEventListener("click", () => decide("retry", { ids: [letter.id] }));
    button("discard").addEventListener("click", () => sure("discard", { ids: [letter.id] }, `Discard No. ${letter.id} for good? It will never be sent.`));
    return item;
  }

  async function list(after) {
    const found = await operate(`/v1/dead-letters?limit=${PAGE}` + (after ? `&after=${after}` : ""));
    if (found === null) return false;
    const items = found.dead_letters.map(show);
    if (after) byId("decide").append(...items);
    else byId("decide").replaceChildren(...items);
    next = found.next;
    byId("more").hidden = next === null;
    for (const button of all("[data-all]")) button.disabled = found.dead_letters.length === 0;
    return true;
  }

  async function decide(what, body) {
    const done = await operate(`/v1/dead-letters/${what}`, body);
    if (done === null) return;
    const records = done.count === 1 ? "1 record" : `${number.format(done.count)} records`;
    const result = what === "retry" ? `${records} on the way again.` : `${records} discarded.`;
    await Promise.all([list(), refresh()]);
    say(result);
  }

  function sure(what, body, question) {
    const dialog = byId("sure");
    byId("question").textContent = question;
    const answered = new AbortController();
    for (const button of all("button", dialog)) {
      button.addEventListener("click", () => dialog.close(button.value), { signal: answered.signal });
    }
    dialog.addEventListener(
      "close",
      () => {
        answered.abort();
        if (dialog.returnValue === "yes") decide(what, body);
      },
      { once: true },
    );
    dialog.returnValue = "no"; // Escape closes with what was said last
    dialog.showModal();
  }

  function lock() {
    token = null;
    byId("decide").replaceChildren();
    byId("unlocked").hidden = true;
    byId("unlock").hidden = false;
    byId("live-letters").hidden = false;
    say("");
  }

  if (byId("operations") !== null) {
    byId("operations").hidden = false;
    byId("unlock").addEventListener("submit", async (event) => {
      event.preventDefault();
      token = byId("token").value;
      byId("token").value = "";
      say("");
      if (await list()) {
        byId("unlock").hidden = true;
        byId("unlocked").hidden = false;
        byId("live-letters").hidden = true;
      }
    });
    byId("lock").addEventListener("click", lock);
    byId("more").addEventListener("click", () => list(next));
    for (const button of all("[data-all]")) {
      button.addEventListener("click", () => {
        if (button.dataset.all === "retry") decide("retry", { all: true });
        else sure("discard", { all: true }, "Discard all refused records for good? They will never be sent.");
      });
    }
  }

  // -- from now on --------------------------------------------------------------------------

  async function follow() {
    if (!document.hidden) await Promise.all([refresh(), history()]);
    setTimeout(follow, POLL_MS);
  }
  document.addEventListener("visibilitychange", () => document.hidden || refresh());
  localTimes(document);
  follow();
})();
