// What lies under the pointer, and the note that says what it is.

// Lines of an explanation in the note; the panel has them all.
const NOTE_LINES = 5;
const tip = document.getElementById('tip');

// Marks before bars, bars before arcs, arcs before the shade of a fault: small things lie on top.
function hit(x, y) {
  const low = y + scroller.scrollTop;
  if (y < AXIS) return null;
  const row = rowAt(low);
  if (x < lanes.gutter) return named(row);
  const spotted = spots.findLast(([left, top, width, height]) => x >= left && x <= left + width && low >= top && low <= top + height);
  const what = spotted ? spotted[4] : null;
  const loose = what && ['fault', 'quota', 'violation'].includes(what.kind);
  if (what && !loose) return what;
  return barAt(row, x, low) ?? (what && what.kind === 'violation' ? what : null) ?? arcAt(x, low) ?? what;
}

function named(row) {
  if (!row) return null;
  if (row.type === 'lane') return { kind: 'host', host: row.host };
  if (row.type === 'more') return { kind: 'more' };
  if (row.type === 'head' || row.type === 'shut') return { kind: 'group', group: row.kind };
  return row.type === 'quota' ? { kind: 'quota', quota: row.quota } : null;
}

function barAt(row, x, y) {
  let best = null;
  for (const host of row?.hosts ?? []) {
    for (const bar of bars.get(host.id)) {
      if (xOf(bar.from) > x + 2) break;
      if (xOf(bar.to) < x - 2 || !shown(bar.request)) continue;
      const at = place(host.id, bar);
      const away = Math.abs(at.y - y) - at.thick / 2 - (wanted(bar.request) ? 0.5 : 0);
      if (away < 2.5 && (!best || away < best.away)) best = { kind: 'request', request: bar.request, attempt: bar.attempt, away };
    }
  }
  return best;
}

function arcAt(x, y) {
  let best = null;
  for (const leg of arcs) {
    if (x < leg.x0 - 4 || x > leg.x1 + 4 || y < Math.min(leg.y0, leg.y1) - 3 || y > Math.max(leg.y0, leg.y1) + 3) continue;
    const bend = (leg.x1 - leg.x0) * 0.9;
    for (let i = 0; i <= 24; i += 1) {
      const [t, u] = [i / 24, 1 - i / 24];
      const px = u ** 3 * leg.x0 + 3 * u * u * t * (leg.x0 + bend) + 3 * u * t * t * (leg.x1 - bend) + t ** 3 * leg.x1;
      const py = u ** 3 * leg.y0 + 3 * u * u * t * leg.y0 + 3 * u * t * t * leg.y1 + t ** 3 * leg.y1;
      const away = Math.abs(px - x) + Math.abs(py - y) / 4;
      if (away < 4 && (!best || away < best.away)) best = { kind: 'request', request: leg.request, attempt: leg.attempt, away };
    }
  }
  return best;
}

const line = (text, className = '') => el('p', { textContent: text, className });

const NOTES = {
  request: ({ request, attempt }) => {
    const lines = request.explanation.slice(0, NOTE_LINES);
    const rest = request.explanation.length - lines.length;
    return [
      el('b', { textContent: `Request ${request.id}`, className: request.good ? '' : 'bad' }),
      line(`${request.outcome} · ${request.tenant} · ${request.model}${request.session ? ` · session ${request.session}` : ''}`),
      attempt ? line(`Attempt ${request.attempts.indexOf(attempt) + 1} on ${nameOf(attempt.replica)}: ${attempt.end}, ${timing(attempt)}`, attempt.good ? '' : 'bad') : line(`${instant(request.arrived_ns)}, took ${span(request.end - request.arrived_ns)}`),
      lines.length ? el('ol', {}, ...lines.map((text) => el('li', { textContent: text }))) : null,
      rest > 0 ? line(`and ${rest} more: press to read`) : null,
    ];
  },
  fault: ({ fault }) => [
    el('b', { textContent: fault.kind }),
    line(fault.text),
    line(`${instant(fault.start_ns)} to ${fault.end_ns === null ? 'the end' : instant(fault.end)}, ${fault.hosts.length ? list(fault.hosts) : 'everybody'}`),
  ],
  breaker: ({ turn }) => [
    el('b', { textContent: `Breaker ${turn.from} → ${turn.to}` }),
    line(`${nameOf(turn.gateway)} on ${nameOf(turn.replica)}, ${instant(turn.at_ns)}`),
    line(turn.why),
  ],
  move: ({ move }) => [
    el('b', { textContent: `Session ${move.session}` }),
    line(`from ${nameOf(move.from)} to ${nameOf(move.to)}, ${instant(move.at_ns)}, by ${nameOf(move.gateway)}`),
    line(move.why),
  ],
  mark: ({ mark }) => [el('b', { textContent: mark.text }), line(`${nameOf(mark.host)}, ${instant(mark.at_ns)}`)],
  violation: () => [
    el('b', { textContent: `Invariant ${broken.invariant}: ${broken.name}`, className: 'bad' }),
    line(broken.text),
    line(`${instant(broken.at_ns)}${broken.hosts.length ? `, ${list(broken.hosts)}` : ''}`),
  ],
  quota: ({ quota }, x) => {
    const at = timeAt(x);
    const point = quota.points.findLast(([when]) => when <= at) ?? [0, 0, 0];
    return [
      el('b', { textContent: quota.account }),
      line(`${number(point[1])} spent, ${number(point[2])} outstanding${x >= lanes.gutter ? ` at ${instant(at)}` : ''}`),
      line(quota.limit === null ? 'no limit' : `limit ${number(quota.limit)}`),
    ];
  },
  host: ({ host }) => [el('b', { textContent: host.name }), line('Press to see its requests alone')],
  more: () => [line(view.accounts ? 'Press to show the first accounts alone' : `Press to show all ${quotas.length} accounts`)],
  group: ({ group }) => [line(view.shut.has(group) ? `Press to unfold ${KIND_NAMES[group].toLowerCase()}` : `Press to fold ${KIND_NAMES[group].toLowerCase()} into one lane`)],
};

const list = (ids) => (ids.length > 6 ? `${ids.slice(0, 6).map(nameOf).join(', ')} and ${ids.length - 6} more` : ids.map(nameOf).join(', '));
const timing = (attempt) => {
  const all = span(attempt.end_at - attempt.start_ns);
  return attempt.first_token_ns === null ? `no token in ${all}` : `first token after ${span(attempt.first_token_ns - attempt.start_ns)}, ${all} in all`;
};

function hover(x, y, clientX, clientY) {
  const what = hit(x, y);
  view.over = what;
  canvas.classList.toggle('over', Boolean(what && ['request', 'host', 'group', 'more'].includes(what.kind)));
  tip.hidden = !what;
  if (!what) return;
  tip.replaceChildren(...NOTES[what.kind](what, x).filter(Boolean));
  const { offsetWidth: width, offsetHeight: height } = tip;
  const left = clientX + 16 + width > innerWidth - 8 ? clientX - width - 14 : clientX + 16;
  const top = clientY + 18 + height > innerHeight - 8 ? clientY - height - 14 : clientY + 18;
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${Math.max(8, top)}px`;
}

function unhover() {
  view.over = null;
  tip.hidden = true;
  canvas.classList.remove('over');
}

// A press takes what lies there; a press on nothing lets go.
function press(x, y) {
  const what = hit(x, y);
  unhover();
  if (!what) return view.pinned || view.host !== null ? (pin(null), address('')) : undefined;
  const { kind } = what;
  if (kind === 'request') return pin(what.request, false);
  if (kind === 'host') return pinHost(view.host === what.host.id ? null : what.host.id);
  if (kind === 'group') return fold(what.group);
  if (kind === 'more') { view.accounts = !view.accounts; return changed(true); }
  if (kind === 'violation') return blamed ? pin(blamed, false) : pin(null);
  if (kind === 'mark') return pinHost(what.mark.host);
  if (kind === 'breaker') return pinHost(what.turn.replica);
  if (kind === 'move') return sessionOf(what.move);
}

function fold(kind) {
  if (!view.shut.delete(kind)) view.shut.add(kind);
  changed(true);
}

// The request that a session's move belongs to: the last one of that session that arrived before.
function sessionOf(move) {
  const request = requests.findLast((each) => each.session === move.session && each.arrived_ns <= move.at_ns);
  if (request) pin(request, false);
}
