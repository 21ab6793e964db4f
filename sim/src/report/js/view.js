// What is looked at: the window of time, what is picked out, and how numbers and instants are written.
// Whoever changes the view calls `changed`; everything is drawn again before the next frame.

// Narrower than this, nothing in a run has a shape: links take a millisecond.
const WINDOW_MIN = 1e6;

const view = {
  from: 0, to: DURATION,
  scope: 'all',
  shut: new Set(),
  accounts: false,
  onlyBad: false,
  query: '', found: null,
  pinned: null, host: null,
  over: null,
  // Grows whenever the set of lanes may be another one.
  layout: 0,
};

const calm = matchMedia('(prefers-reduced-motion: reduce)');
let waiting = false;
let paintAll = () => {};
let flight = 0;

function changed(lanes) {
  if (lanes) view.layout += 1;
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; paintAll(); });
}

// Shows [from, to], moved and narrowed so that it lies within the run.
function show(from, to) {
  const width = Math.min(DURATION, Math.max(WINDOW_MIN, to - from));
  view.from = Math.min(Math.max(0, from), DURATION - width);
  view.to = view.from + width;
  changed();
}

// The same, gliding there: the eye keeps its place.
function glide(from, to) {
  const [a, b, began] = [view.from, view.to, performance.now()];
  flight += 1;
  const mine = flight;
  if (calm.matches) return show(from, to);
  const step = (now) => {
    if (mine !== flight) return;
    const t = Math.min(1, Math.max(0, (now - began) / 280));
    const s = 1 - (1 - t) ** 3;
    show(a + (from - a) * s, b + (to - b) * s);
    if (t < 1) requestAnimationFrame(step);
  };
  requestAnimationFrame(step);
}

const land = () => { flight += 1; };
const zoom = (factor, at = (view.from + view.to) / 2) => {
  land();
  show(at - (at - view.from) * factor, at + (view.to - at) * factor);
};
const pan = (share) => { land(); const by = (view.to - view.from) * share; show(view.from + by, view.to + by); };

// A width in which single requests can be told apart: about ninety of them, on the average.
function closeUp() {
  const gap = DURATION / Math.max(1, requests.length);
  return Math.min(DURATION, Math.max(DURATION / 60, gap * 90));
}

// Where to look first: at what broke, else at where most went wrong, else at the first fault, else at the beginning.
function opening() {
  let width = closeUp();
  if (!broken && story.faults.length && story.tally.bad) {
    const { failed } = story.tally;
    const worst = (failed.indexOf(Math.max(...failed)) / failed.length) * DURATION;
    const from = Math.max(0, Math.min(DURATION - width, worst - width * 0.35));
    return [from, from + width];
  }
  if (!broken) {
    const first = story.faults.reduce((least, fault) => Math.min(least, fault.start_ns), DURATION);
    return first === DURATION ? [0, width] : [first - width * 0.2, first + width * 0.8];
  }
  if (blamed) width = Math.min(DURATION, Math.max(width, (broken.at_ns - blamed.arrived_ns) * 1.6));
  return [broken.at_ns - width * 0.68, broken.at_ns + width * 0.32];
}

function jump() {
  const [from, to] = opening();
  if (blamed) { pin(blamed, false); bringLanes(blamed); }
  glide(from, to);
}

// Brings [from, to] into the window, and moves no more than needed.
function reveal(from, to) {
  const width = view.to - view.from;
  if (from >= view.from && to <= view.to) return;
  if (to - from > width * 0.9) return void glide(from - (to - from) * 0.15, to + (to - from) * 0.15);
  const middle = (from + to) / 2;
  glide(middle - width / 2, middle + width / 2);
}

function pin(request, moving = true) {
  view.pinned = request;
  view.host = null;
  changed(true);
  if (!request) return;
  if (moving) { reveal(request.arrived_ns, request.end); bringLanes(request); }
  say(`Request ${request.id} of ${request.tenant}: ${request.outcome}, ${count(request.attempts.length, 'attempt')}.`);
  address(`r=${encodeURIComponent(request.id)}`);
}

function pinHost(id) {
  view.host = id;
  view.pinned = null;
  changed(true);
  if (id !== null) say(`${nameOf(id)}: ${count((bars.get(id) ?? []).length, 'request')}.`);
}

// Whether a request is drawn at all, and whether it is what the reader asked for.
const shown = (request) => !view.onlyBad || !request.good || request === view.pinned;
const wanted = (request) => {
  if (view.pinned) return request === view.pinned;
  if (view.host !== null) return touches(request, view.host);
  return !view.found || view.found.has(request);
};
const touches = (request, id) => request.gateway === id || request.attempts.some((attempt) => attempt.replica === id);
const selective = () => view.pinned !== null || view.host !== null || view.found !== null;

function search(text) {
  view.query = text.trim().toLowerCase();
  const matches = (request) => [request.id, request.session ?? '', request.tenant, request.model, nameOf(request.gateway), ...request.attempts.map((attempt) => nameOf(attempt.replica))]
    .some((field) => field.toLowerCase().includes(view.query));
  view.found = view.query ? new Set(requests.filter(matches)) : null;
  if (view.found) view.pinned = null;
  changed(true);
}

// The next or previous request among those wanted; from nowhere, the first one in the window.
function step(by) {
  const list = requests.filter((request) => shown(request) && (!view.found || view.found.has(request)));
  if (!list.length) return;
  const at = view.pinned ? list.indexOf(view.pinned) + by : list.findIndex((request) => request.arrived_ns >= view.from);
  pin(list[(Math.max(at, -1) + list.length) % list.length]);
}

const say = (text) => { document.getElementById('live').textContent = text; };
const address = (hash) => {
  // A page opened from a disk may be refused its own address.
  try { history.replaceState(null, '', `#${hash}`); } catch { /* the link is a convenience */ }
};

const count = (n, noun) => `${number(n)} ${noun}${n === 1 ? '' : 's'}`;
const number = (n) => n.toLocaleString('en-US');
const short = (n) => (n >= 1e6 ? `${+(n / 1e6).toPrecision(3)}M` : n >= 1e4 ? `${+(n / 1e3).toPrecision(3)}k` : number(n));
// Cut, not rounded, as in the list of events; a whole nanosecond keeps a division from losing the last digit.
const instant = (ns, digits = 3) => `${(Math.floor(Math.round(ns) / 10 ** (9 - digits)) / 10 ** digits).toFixed(digits)} s`;
const span = (ns) => (ns < 1e6 ? `${+(ns / 1e3).toPrecision(3)} µs` : ns < SECOND ? `${+(ns / 1e6).toPrecision(3)} ms` : `${+(ns / SECOND).toPrecision(3)} s`);

// Round instants of [from, to], so far apart that at most `most` of them fit, and how many digits tell them apart.
function ticks(from, to, most) {
  const raw = (to - from) / Math.max(1, most);
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find((n) => n * power >= raw) * power;
  const digits = Math.max(0, Math.min(6, 9 - Math.floor(Math.log10(step) + 1e-9)));
  const list = [];
  for (let at = Math.ceil(from / step) * step; at <= to; at += step) list.push(at);
  return { list, digits: step >= SECOND ? 0 : digits };
}

const el = (tag, props = {}, ...children) => {
  const node = Object.assign(document.createElement(tag), props);
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
};
