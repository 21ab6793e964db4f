// The side panel: one request with its reasons, one host, what was found, or what happened around the failing moment.

const panel = document.getElementById('panel');
const ROWS_SHOWN = 60;
const AROUND = 16;
let drawn = '';

// Drawn again only when it says something else: whoever reads or selects in it is not disturbed by a pan.
function paintPanel() {
  const key = [view.pinned?.id, view.host, view.query, view.onlyBad].join('\u0000');
  if (key === drawn) return;
  drawn = key;
  const held = panel.contains(document.activeElement);
  panel.replaceChildren(...contents().filter(Boolean));
  panel.scrollTop = 0;
  if (held) panel.focus({ preventScroll: true });
}

function contents() {
  if (view.pinned) return ofRequest(view.pinned);
  if (view.host !== null) return ofHost(view.host);
  if (view.found) return ofSearch();
  return broken ? aroundFailure() : worthALook();
}

const heading = (text) => el('h4', { textContent: text });
const pair = (name, value) => [el('dt', { textContent: name }), el('dd', { textContent: value })];
const closer = () => el('button', { type: 'button', className: 'close', textContent: '✕', ariaLabel: 'Let go', onclick: () => { pin(null); address(''); canvas.focus(); } });
const head = (title) => el('div', { className: 'head' }, el('h3', { textContent: title }), closer());

function ofRequest(request) {
  const isBlamed = request === blamed;
  const same = request.session === null ? [] : requests.filter((other) => other.session === request.session);
  const at = same.indexOf(request);
  const sibling = (text, other) => (other ? el('button', { type: 'button', textContent: text, onclick: () => pin(other) }) : null);
  return [
    head(`Request ${request.id}`),
    el('span', { className: request.good ? 'chip' : 'chip bad', textContent: request.outcome }),
    isBlamed ? el('p', { className: 'quiet', textContent: `Invariant ${broken.invariant} broke on it: ${broken.text}` }) : null,
    el('dl', {},
      ...pair('Tenant', request.tenant), ...pair('Model', request.model),
      ...(request.session === null ? [] : pair('Session', same.length > 1 ? `${request.session}, turn ${at + 1} of ${same.length}` : request.session)),
      ...pair('Gateway', nameOf(request.gateway)), ...pair('Arrived', instant(request.arrived_ns)),
      ...pair('Took', request.ended_ns === null ? 'never ended' : span(request.end - request.arrived_ns)), ...pair('Tokens', number(request.tokens))),
    request.explanation.length ? heading('Why it went where it went') : null,
    request.explanation.length ? el('ol', { className: 'why' }, ...request.explanation.map((text) => el('li', { textContent: text }))) : null,
    heading(request.attempts.length ? count(request.attempts.length, 'attempt') : 'No attempt was made'),
    ...request.attempts.map((attempt) => ofAttempt(request, attempt)),
    el('div', { className: 'steps' },
      el('button', { type: 'button', textContent: 'Zoom to it', onclick: () => glideTo(request) }),
      sibling('Previous turn', same[at - 1]), sibling('Next turn', same[at + 1])),
  ];
}

function ofAttempt(request, attempt) {
  return el('div', { className: attempt.good ? 'try' : 'try bad' },
    el('b', { textContent: nameOf(attempt.replica) }), ` ${attempt.end}`,
    el('p', { textContent: `after ${span(attempt.start_ns - request.arrived_ns)}: ${timing(attempt)}` }));
}

function glideTo(request) {
  const room = Math.max(WINDOW_MIN * 20, request.end - request.arrived_ns) * 0.25;
  glide(request.arrived_ns - room, request.end + room);
}

function requestRow(request, note) {
  return el('button', { type: 'button', className: 'row', onclick: () => pin(request) },
    el('time', { textContent: instant(request.arrived_ns) }),
    el('b', { textContent: request.id, className: request.good ? '' : 'bad' }), ` ${note ?? `${request.tenant}: ${request.outcome}`}`);
}

function eventRow(event) {
  return el('button', { type: 'button', className: `row ${event.kind}`, onclick: () => lookAt(event) },
    el('time', { textContent: instant(event.at) }), el('b', { textContent: event.title }), ` ${event.text}`);
}

function lookAt(event) {
  if (event.kind === 'violation') return jump();
  const width = Math.min(view.to - view.from, closeUp());
  glide(event.at - width * 0.35, event.at + width * 0.65);
}

const rows = (list, make) => [
  ...list.slice(0, ROWS_SHOWN).map((item) => make(item)),
  list.length > ROWS_SHOWN ? el('p', { className: 'quiet', textContent: `and ${number(list.length - ROWS_SHOWN)} more` }) : null,
];

function ofHost(id) {
  const mine = bars.get(id) ?? [];
  const bad = mine.filter((bar) => !bar.good);
  const happened = events.filter((event) => event.hosts.includes(id));
  const waits = mine.filter((bar) => bar.attempt && bar.first !== null).map((bar) => bar.first - bar.from).sort((a, b) => a - b);
  return [
    head(nameOf(id)),
    el('dl', {}, ...pair(hosts.get(id)?.kind === 'replica' ? 'Attempts' : 'Requests', number(mine.length)), ...pair('Failed', number(bad.length)),
      ...(waits.length ? pair('First token', `${span(waits[Math.floor(waits.length / 2)])} median`) : [])),
    heading('What happened to it'),
    ...(happened.length ? rows(happened, eventRow) : [el('p', { className: 'quiet', textContent: 'Nothing but work.' })]),
    bad.length ? heading('What failed on it') : null,
    ...rows(bad, (bar) => requestRow(bar.request, bar.attempt ? bar.attempt.end : undefined)),
  ];
}

function ofSearch() {
  const found = requests.filter((request) => view.found.has(request) && shown(request));
  return [
    el('h3', { textContent: found.length ? count(found.length, 'request') : 'Nothing found' }),
    el('p', { className: 'quiet', textContent: found.length ? 'Enter goes from one to the next.' : 'Search looks at request ids, sessions, tenants, models and hosts.' }),
    ...rows(found, (request) => requestRow(request)),
  ];
}

function aroundFailure() {
  const near = [...events].sort((a, b) => Math.abs(a.at - broken.at_ns) - Math.abs(b.at - broken.at_ns)).slice(0, AROUND);
  const failed = requests.filter((request) => !request.good);
  return [
    el('h3', { textContent: 'Around the failing moment' }),
    ...near.sort((a, b) => a.at - b.at).map(eventRow),
    blamed ? heading('The request it was seen on') : null,
    blamed ? requestRow(blamed) : null,
    failed.length ? heading(`Failed (${failed.length})`) : null,
    ...rows(failed, (request) => requestRow(request)),
  ];
}

// Nothing broke: then the extremes are what is interesting.
function worthALook() {
  const most = (score) => requests.reduce((best, request) => (score(request) > (best ? score(best) : 0) ? request : best), null);
  const wait = (request) => (request.first === null ? 0 : request.first - request.arrived_ns);
  const extremes = [
    ['Most attempts', most((request) => (request.attempts.length > 1 ? request.attempts.length : 0)), (request) => count(request.attempts.length, 'attempt')],
    ['Longest wait for a first token', most(wait), (request) => span(wait(request))],
    ['Most tokens', most((request) => request.tokens), (request) => `${number(request.tokens)} tokens`],
  ].filter(([, request]) => request);
  const failed = requests.filter((request) => !request.good);
  return [
    el('h3', { textContent: 'Worth a look' }),
    ...extremes.flatMap(([title, request, note]) => [heading(title), requestRow(request, note(request))]),
    failed.length ? heading(`Ended badly (${failed.length}), breaking no promise`) : null,
    ...rows(failed, (request) => requestRow(request)),
    events.length ? heading('What happened') : null,
    ...rows(events, eventRow),
  ];
}
