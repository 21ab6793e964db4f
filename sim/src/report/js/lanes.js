// Which lanes there are and where they stand. Lanes share the height there is: a few hosts get broad lanes, hundreds get
// narrow ones and a scroll bar. A collapsed kind keeps one lane into which all its hosts are drawn, so that no arc of a
// request ends in nothing.

const AXIS = 26;
const GAP = 9;
const HEAD = 20;
const LANE_MIN = 20;
const LANE_MAX = 54;
const QUOTA = 44;
// Accounts shown until the reader asks for more: more lines than that push the lanes out of sight.
const QUOTAS_SHOWN = 2;

const scroller = document.getElementById('scroller');
const canvas = document.getElementById('lanes');
const space = document.getElementById('space');

let lanes = { at: -1, rows: [], byHost: new Map(), height: 0, width: 0, gutter: 0, seen: 0 };

function visibleHosts() {
  const chosen = { all: null, active, involved }[view.scope];
  const extra = new Set();
  if (view.pinned) [view.pinned.gateway, ...view.pinned.attempts.map((attempt) => attempt.replica)].forEach((id) => extra.add(id));
  if (view.host !== null) extra.add(view.host);
  if (clients) extra.add(clients.id);
  return story.hosts.filter((host) => !chosen || chosen.has(host.id) || extra.has(host.id));
}

// Lays out again when something changed that lanes depend on.
function layout() {
  const box = { width: canvas.clientWidth, seen: canvas.clientHeight };
  if (lanes.at === view.layout && lanes.width === box.width && lanes.seen === box.seen) return lanes;
  const groups = KINDS.map((kind) => [kind, []]);
  for (const host of visibleHosts()) groups[KINDS.indexOf(host.kind)][1].push(host);
  const accounts = view.shut.has('quota') ? [] : quotas.slice(0, view.accounts ? quotas.length : QUOTAS_SHOWN);
  const plan = planned(groups.filter(([, list]) => list.length), accounts);
  const fixed = plan.reduce((sum, row) => sum + (row.height ?? 0), 0);
  const flexible = plan.filter((row) => row.height === undefined).length;
  const each = Math.min(LANE_MAX, Math.max(LANE_MIN, Math.floor((box.seen - AXIS - 8 - fixed) / Math.max(1, flexible))));
  const byHost = new Map();
  let y = AXIS + 4;
  for (const row of plan) {
    row.height ??= each;
    row.y = y;
    y += row.height;
    for (const host of row.hosts ?? []) byHost.set(host.id, row);
  }
  lanes = { at: view.layout, rows: plan, byHost, height: y + 4, ...box, gutter: box.width < 520 ? 92 : 138 };
  space.style.height = `${Math.max(0, lanes.height - box.seen)}px`;
  return lanes;
}

function planned(groups, accounts) {
  const rows = accounts.map((quota) => ({ type: 'quota', quota, height: QUOTA }));
  if (rows.length && quotas.length > QUOTAS_SHOWN) rows.push({ type: 'more', height: HEAD });
  if (rows.length) rows.push({ type: 'gap', height: GAP });
  for (const [kind, list] of groups) {
    const total = story.hosts.filter((host) => host.kind === kind).length;
    if (view.shut.has(kind)) {
      rows.push({ type: 'shut', kind, hosts: list, total });
    } else {
      if (total > 1) rows.push({ type: 'head', kind, shown: list.length, total, height: HEAD });
      rows.push(...list.map((host) => ({ type: 'lane', kind, host, hosts: [host] })));
    }
    rows.push({ type: 'gap', height: GAP });
  }
  return rows;
}

// Scrolls the lanes of a request into sight, as far as they fit; its gateway before its replicas.
function bringLanes(request) {
  layout();
  const rows = [request.gateway, ...request.attempts.map((attempt) => attempt.replica)].map(laneOf).filter(Boolean);
  if (!rows.length) return;
  const [top, bottom] = [Math.min(...rows.map((row) => row.y)), Math.max(...rows.map((row) => row.y + row.height))];
  const [low, high] = [bottom + 24 - lanes.seen, top - AXIS - 24];
  if (scroller.scrollTop < low) scroller.scrollTop = Math.min(low, high);
  if (scroller.scrollTop > high) scroller.scrollTop = high;
}

const rowAt = (y) => lanes.rows.find((row) => y >= row.y && y < row.y + row.height);
const laneOf = (id) => lanes.byHost.get(id);

// Time to pixels and back, within the plot to the right of the names.
const xOf = (ns) => lanes.gutter + ((ns - view.from) / (view.to - view.from)) * (lanes.width - lanes.gutter);
const timeAt = (x) => view.from + ((x - lanes.gutter) / (lanes.width - lanes.gutter)) * (view.to - view.from);

// The middle of a bar's row within its lane, and how thick the bar is.
function place(id, bar) {
  const lane = laneOf(id);
  if (!lane) return null;
  const rows = lane.type === 'shut' ? ROWS_MAX : rowsOf.get(id) ?? 1;
  const pad = lane.height > 30 ? 7 : 4;
  const pitch = (lane.height - 2 * pad) / rows;
  const thick = Math.max(1.5, Math.min(9, pitch - (pitch > 4 ? 1.5 : 0.5)));
  const middle = lane.y + pad + pitch * ((bar ? Math.min(bar.row, rows - 1) : (rows - 1) / 2) + 0.5);
  return { y: middle, thick, lane };
}
