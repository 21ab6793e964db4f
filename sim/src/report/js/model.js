// The story, read and indexed once: which bars stand in which lane, who was involved, what happened in order of time.
// Nothing here draws, and nothing after this file changes what stands here.

const story = JSON.parse(document.getElementById('story').textContent);
const SECOND = 1e9;
const DURATION = Math.max(1, story.duration_ns);
const hosts = new Map(story.hosts.map((host) => [host.id, host]));
const requests = story.requests.sort((a, b) => a.arrived_ns - b.arrived_ns);
const requestById = new Map(requests.map((request) => [request.id, request]));
const broken = story.violation;
const blamed = broken && broken.request !== null ? requestById.get(broken.request) : undefined;

// Kinds of hosts in the order of their lanes: a request falls from the top to the bottom.
const KINDS = ['clients', 'gateway', 'replica', 'store', 'registry'];
const KIND_NAMES = {
  clients: 'Clients', gateway: 'Gateways', replica: 'Replicas', store: 'Stores', registry: 'Registries', quota: 'Quota',
};

// Rows of bars in one lane. More at once share a row: thinner than this, nobody tells them apart.
const ROWS_MAX = 8;

// Hosts up to which every one is shown, and how many are shown of those involved when there are more.
const HOSTS_SHOWN_AT_ONCE = 40;
const INVOLVED_MAX = 36;

const nameOf = (id) => (id === null || id === undefined ? 'nowhere' : hosts.get(id)?.name ?? `host ${id}`);

requests.forEach((request, index) => {
  request.index = index;
  const ends = request.attempts.map((attempt) => attempt.end_ns ?? DURATION);
  request.end = request.ended_ns ?? Math.max(DURATION, ...ends);
  const tokens = request.attempts.map((attempt) => attempt.first_token_ns).filter((at) => at !== null);
  request.first = tokens.length ? Math.min(...tokens) : null;
  for (const attempt of request.attempts) attempt.end_at = attempt.end_ns ?? DURATION;
});
for (const fault of story.faults) fault.end = fault.end_ns ?? DURATION;

const clients = story.hosts.find((host) => host.kind === 'clients');

// What stands in the lanes: of a gateway its requests, of a replica the attempts sent to it.
const bars = new Map(story.hosts.map((host) => [host.id, []]));
for (const request of requests) {
  const whole = { request, attempt: null, from: request.arrived_ns, first: request.first, to: request.end, good: request.good };
  bars.get(request.gateway)?.push(whole);
  for (const attempt of request.attempts) {
    const part = { request, attempt, from: attempt.start_ns, first: attempt.first_token_ns, to: attempt.end_at, good: attempt.good };
    attempt.bar = part;
    bars.get(attempt.replica)?.push(part);
  }
  request.bar = whole;
}
const rowsOf = new Map([...bars].map(([id, list]) => [id, packed(list)]));

// Puts each bar into the first row that is free again, and says how many rows that took.
function packed(list) {
  list.sort((a, b) => a.from - b.from);
  const free = [];
  for (const bar of list) {
    let row = free.findIndex((until) => until <= bar.from);
    if (row < 0 && free.length < ROWS_MAX) row = free.push(0) - 1;
    if (row < 0) row = free.indexOf(Math.min(...free));
    free[row] = Math.max(free[row], bar.to);
    bar.row = row;
  }
  return Math.max(1, free.length);
}

// Spans during which a breaker was not closed, as (gateway, replica, from, to, state).
const breakers = story.breakers.sort((a, b) => a.at_ns - b.at_ns);
const openSpans = [];
{
  const last = new Map();
  const close = (turn, until) => {
    if (turn && turn.to !== 'closed') openSpans.push({ turn, from: turn.at_ns, to: until, replica: turn.replica });
  };
  for (const turn of breakers) {
    const key = `${turn.gateway}/${turn.replica}`;
    close(last.get(key), turn.at_ns);
    last.set(key, turn);
  }
  for (const turn of last.values()) close(turn, DURATION);
}

// Whom the failing moment concerns, the nearest first; without one, whom faults concern.
const involved = (() => {
  const ids = new Set();
  const add = (id) => { if (hosts.has(id) && ids.size < INVOLVED_MAX) ids.add(id); };
  const addRequest = (request) => { add(request.gateway); request.attempts.forEach((attempt) => add(attempt.replica)); };
  if (broken) broken.hosts.forEach(add);
  if (blamed) addRequest(blamed);
  const session = blamed?.session;
  if (session) for (const move of story.moves) if (move.session === session) [move.gateway, move.from, move.to].forEach(add);
  const since = broken ? Math.min(broken.at_ns, blamed?.arrived_ns ?? Infinity) - DURATION / 40 : 0;
  const until = broken ? broken.at_ns : DURATION;
  for (const request of requests) {
    if (session && request.session === session && request.arrived_ns <= until && request.end >= since) addRequest(request);
  }
  const near = story.faults.filter((fault) => fault.start_ns <= until && fault.end >= since);
  near.sort((a, b) => b.start_ns - a.start_ns).forEach((fault) => fault.hosts.forEach(add));
  const concerned = ids.size;
  for (const host of story.hosts) if (concerned && (host.kind === 'clients' || host.kind === 'store')) ids.add(host.id);
  return ids;
})();

// Who did anything at all.
const active = (() => {
  const ids = new Set([...bars].filter(([, list]) => list.length).map(([id]) => id));
  if (clients && requests.length) ids.add(clients.id);
  for (const fault of story.faults) fault.hosts.forEach((id) => ids.add(id));
  for (const mark of story.marks) ids.add(mark.host);
  for (const turn of breakers) [turn.gateway, turn.replica].forEach((id) => ids.add(id));
  return ids;
})();

// Accounts, the interesting ones first: whoever pays for the failing request, then whoever is nearest to a limit.
const quotas = (() => {
  const peak = (quota) => quota.points.reduce((most, [, spent, out]) => Math.max(most, spent + out), 0);
  for (const quota of story.quotas) {
    quota.peak = peak(quota);
    quota.use = quota.limit ? quota.peak / quota.limit : 0;
    if (blamed && quota.account.startsWith(blamed.tenant)) quota.use += 1e9;
  }
  return story.quotas.sort((a, b) => b.use - a.use);
})();

// Everything that is not a request, in order of time, in the words of the panel.
const events = [
  ...story.faults.map((fault) => ({ at: fault.start_ns, kind: 'fault', what: fault, title: fault.kind, text: fault.text, hosts: fault.hosts })),
  ...story.marks.map((mark) => ({ at: mark.at_ns, kind: 'mark', what: mark, title: nameOf(mark.host), text: mark.text, hosts: [mark.host] })),
  ...breakers.map((turn) => ({
    at: turn.at_ns, kind: 'breaker', what: turn, title: `${nameOf(turn.gateway)} on ${nameOf(turn.replica)} ${turn.to}`,
    text: turn.why, hosts: [turn.gateway, turn.replica],
  })),
  ...story.moves.map((move) => ({
    at: move.at_ns, kind: 'move', what: move, title: `${move.session} to ${nameOf(move.to)}`, text: move.why,
    hosts: [move.gateway, move.from, move.to].filter((id) => id !== null),
  })),
  ...(broken ? [{ at: broken.at_ns, kind: 'violation', what: broken, title: `Invariant ${broken.invariant}: ${broken.name}`, text: broken.text, hosts: broken.hosts }] : []),
].sort((a, b) => a.at - b.at);
