// Puts the parts together: buttons, search, links into the page, the theme, and the first look.

const SCOPES = { involved: 'Involved', active: 'Active', all: 'All' };
const byId = (id) => document.getElementById(id);
const toggle = (text, note, onclick) => el('button', { type: 'button', onclick }, text, note === null ? null : el('small', { textContent: ` ${note}` }));

function scopeButtons() {
  const counts = { involved: involved.size, active: active.size, all: story.hosts.length };
  const useful = Object.keys(SCOPES).filter((scope) => counts[scope] > 0 && (scope === 'all' || counts[scope] < counts.all));
  if (useful.length < 2) { byId('scope').hidden = true; return []; }
  return useful.map((scope) => {
    const button = toggle(SCOPES[scope], number(counts[scope]), () => { view.scope = scope; changed(true); });
    return [button, () => view.scope === scope];
  });
}

function groupButtons() {
  const there = KINDS.filter((kind) => story.hosts.some((host) => host.kind === kind));
  return [...(quotas.length ? ['quota'] : []), ...there.filter((kind) => kind !== 'clients')].map((kind) => {
    const button = toggle(KIND_NAMES[kind], null, () => fold(kind));
    button.title = `Fold or unfold ${KIND_NAMES[kind].toLowerCase()}`;
    return [button, () => !view.shut.has(kind)];
  });
}

function buttons() {
  const bad = byId('bad');
  bad.append(el('small', { textContent: ` ${number(story.tally.bad)}` }));
  bad.onclick = () => { view.onlyBad = !view.onlyBad; changed(); };
  bad.hidden = story.tally.bad === 0;
  const [scopes, groups] = [scopeButtons(), groupButtons()];
  byId('scope').append(...scopes.map(([button]) => button));
  byId('groups').append(...groups.map(([button]) => button));
  byId('in').onclick = () => zoom(0.6);
  byId('out').onclick = () => zoom(1 / 0.6);
  byId('whole').onclick = () => glide(0, DURATION);
  const states = [...scopes, ...groups, [bad, () => view.onlyBad]];
  return () => states.forEach(([button, pressed]) => button.setAttribute('aria-pressed', String(pressed())));
}

function searchBox() {
  const box = byId('query');
  box.addEventListener('input', () => search(box.value));
  box.addEventListener('keydown', (event) => {
    if (event.key === 'Enter' && view.found?.size) step(event.shiftKey ? -1 : 1);
    if (event.key === 'Escape') { box.value = ''; search(''); pin(null); canvas.focus(); }
  });
  return () => { byId('found').textContent = view.found ? `${number(view.found.size)} found` : ''; };
}

// The command leaves with one press; where the clipboard is refused (a page from a disk), it is selected instead.
function copying() {
  const [button, command] = [byId('copy'), byId('command')];
  button.hidden = false;
  button.onclick = async () => {
    try {
      await navigator.clipboard.writeText(command.textContent);
      button.textContent = 'Copied';
    } catch {
      getSelection().selectAllChildren(command);
      button.textContent = document.execCommand('copy') ? 'Copied' : 'Selected';
    }
    say(button.textContent);
    setTimeout(() => { button.textContent = 'Copy'; }, 1600);
  };
}

// `#t=` an instant in nanoseconds, `#r=` a request: links in the list of events, and links that people send around.
function follow() {
  const [name, value] = [location.hash.slice(1, 3), location.hash.slice(3)];
  if (name === 'r=') {
    const request = requestById.get(safely(value));
    if (request) pin(request);
    return Boolean(request);
  }
  const at = Number(value);
  if (name !== 't=' || value === '' || !Number.isFinite(at)) return false;
  const width = Math.min(view.to - view.from, closeUp());
  glide(at - width / 2, at + width / 2);
  return true;
}

const safely = (text) => { try { return decodeURIComponent(text); } catch { return text; } };

function links() {
  document.addEventListener('click', (event) => {
    const link = event.target.closest('a[href^="#t="]');
    if (!link) return;
    event.preventDefault();
    if (link.id === 'jump') jump();
    else { address(link.hash.slice(1)); follow(); }
    byId('app').scrollIntoView({ block: 'nearest', behavior: calm.matches ? 'auto' : 'smooth' });
    canvas.focus({ preventScroll: true });
  });
  addEventListener('hashchange', follow);
}

function statusLine({ seen, every }) {
  const some = every > 1 ? `, arcs of about one in ${every} drawn` : '';
  const missing = story.tally.requests - requests.length;
  const less = missing > 0 ? `; ${number(missing)} of ${number(story.tally.requests)} are not in this file` : '';
  byId('status').textContent = `${instant(view.from, 2)} to ${instant(view.to, 2)} (${span(view.to - view.from)}), ${count(seen, 'request')}${some}${less}`;
}

function start() {
  byId('app').hidden = false;
  readColours();
  if (story.hosts.length > HOSTS_SHOWN_AT_ONCE) view.scope = involved.size ? 'involved' : 'active';
  const [states, found] = [buttons(), searchBox()];
  copying();
  links();
  brush();
  pointers();
  canvas.addEventListener('wheel', wheel, { passive: false });
  scroller.addEventListener('scroll', () => { unhover(); changed(); }, { passive: true });
  document.addEventListener('keydown', keys);
  paintAll = () => { statusLine(paintLanes()); paintOverview(); paintPanel(); states(); found(); };
  new ResizeObserver(() => changed(true)).observe(scroller);
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => { readColours(); changed(); });
  show(...opening());
  if (blamed) { view.pinned = blamed; changed(true); bringLanes(blamed); }
  if (location.hash) follow();
}

start();
