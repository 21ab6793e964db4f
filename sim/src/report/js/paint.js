// The picture itself: stripes, faults, arcs and bars. Marks above them are in glyphs.js.
// Everything is drawn anew for each frame; only what lies in the window and in sight is touched.

// Arcs drawn at once. With more, the picture is a veil: every so many are drawn then, and the status line says so.
const ARCS_MAX = 700;
// Pixels between two instants of the axis, at least.
const TICK = 96;

const ink = {};
const ctx = canvas.getContext('2d');
let hatch = null;
// What can be pointed at, in the order in which it was painted: [x, y, width, height, what].
let spots = [];
let arcs = [];

function readColours() {
  const style = getComputedStyle(document.documentElement);
  for (const name of ['paper', 'card', 'ink', 'soft', 'faint', 'line', 'rail', 'good', 'wait', 'bad', 'fault', 'fault-text', 'open', 'violation', 'brand']) {
    ink[name.replace('-text', 'Text')] = style.getPropertyValue(`--${name}`).trim();
  }
  ink.sans = style.getPropertyValue('--sans');
  const tile = el('canvas', { width: 7, height: 7 });
  const pen = tile.getContext('2d');
  pen.strokeStyle = ink.fault;
  pen.globalAlpha = 0.32;
  pen.beginPath();
  for (const shift of [-7, 0, 7]) { pen.moveTo(shift - 1, 8); pen.lineTo(shift + 8, -1); }
  pen.stroke();
  hatch = ctx.createPattern(tile, 'repeat');
}

// Makes a canvas as sharp as the screen is.
function fit(target, pen) {
  const ratio = devicePixelRatio || 1;
  const [width, height] = [target.clientWidth, target.clientHeight];
  if (target.width !== Math.round(width * ratio) || target.height !== Math.round(height * ratio)) {
    target.width = Math.round(width * ratio);
    target.height = Math.round(height * ratio);
  }
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  return [width, height];
}

function paintLanes() {
  layout();
  const [width, height] = fit(canvas, ctx);
  const top = scroller.scrollTop;
  spots = [];
  ctx.save();
  ctx.beginPath();
  ctx.rect(lanes.gutter, 0, width - lanes.gutter, height);
  ctx.clip();
  ctx.translate(0, -top);
  const sight = lanes.rows.filter((row) => row.y + row.height > top && row.y < top + height);
  paintStripes(sight, width);
  paintFaults(top, height);
  const seen = requests.filter((request) => request.arrived_ns <= view.to && request.end >= view.from && shown(request));
  const every = paintArcs(seen);
  paintBars(sight);
  paintGlyphs(sight);
  if (view.pinned) {
    paintPath(view.pinned);
    story.moves.filter((move) => view.pinned.session !== null && move.session === view.pinned.session).forEach(paintMove);
  }
  if (broken && inWindow(broken.at_ns)) paintViolation(top, height);
  ctx.restore();
  paintNames(sight, top, height);
  paintAxis(width);
  return { seen: seen.length, every };
}

function paintStripes(sight, width) {
  for (const row of sight) {
    if (row.type === 'gap' || row.type === 'more') continue;
    ctx.fillStyle = ink.rail;
    ctx.globalAlpha = row.type === 'head' ? 0 : 0.55;
    ctx.fillRect(lanes.gutter, row.y + 1, width, row.height - 2);
    if (view.host !== null && row.host?.id === view.host) {
      ctx.fillStyle = ink.good;
      ctx.globalAlpha = 0.1;
      ctx.fillRect(lanes.gutter, row.y + 1, width, row.height - 2);
    }
  }
  ctx.globalAlpha = 0.6;
  ctx.fillStyle = ink.line;
  for (const at of ticks(view.from, view.to, (width - lanes.gutter) / TICK).list) ctx.fillRect(xOf(at), 0, 1, Math.max(lanes.height, lanes.seen));
  ctx.globalAlpha = 1;
}

function paintFaults(top, height) {
  for (const fault of story.faults) {
    if (fault.start_ns > view.to || fault.end < view.from) continue;
    const [x, until] = [xOf(fault.start_ns), Math.max(xOf(fault.end), xOf(fault.start_ns) + 2)];
    const whole = fault.hosts.length === 0;
    const rows = whole ? [{ y: top, height }] : new Set(fault.hosts.map(laneOf).filter(Boolean));
    const left = Math.max(x, lanes.gutter);
    const wide = Math.min(until, lanes.width) - left;
    for (const row of rows) {
      ctx.fillStyle = ink.fault;
      ctx.globalAlpha = whole ? 0.07 : 0.1;
      ctx.fillRect(left, row.y + 1, wide, row.height - 2);
      ctx.globalAlpha = whole ? 0.25 : 0.75;
      ctx.fillStyle = hatch;
      ctx.fillRect(left, row.y + 1, wide, row.height - 2);
      ctx.globalAlpha = 0.9;
      ctx.fillStyle = ink.fault;
      if (!whole) ctx.fillRect(left, row.y + 1, wide, 1.5);
      if (x >= lanes.gutter) ctx.fillRect(x, row.y + 1, 1.5, row.height - 2);
      spots.push([left, row.y, wide, row.height, { kind: 'fault', fault }]);
    }
  }
  ctx.globalAlpha = 1;
}

// An S like the rails of a switch: level where it leaves and level where it arrives.
function curve(pen, x0, y0, x1, y1) {
  const bend = (x1 - x0) * 0.9;
  pen.moveTo(x0, y0);
  pen.bezierCurveTo(x0 + bend, y0, x1 - bend, y1, x1, y1);
}

// From the client's lane to the gateway's, and from there to each replica that was tried.
function legs(request) {
  const list = [];
  const gateway = place(request.gateway, request.bar);
  if (!gateway) return list;
  const x = xOf(request.arrived_ns);
  const from = clients && place(clients.id, null);
  if (from) list.push({ x0: x - 12, y0: from.y, x1: x, y1: gateway.y, good: true, request, attempt: null });
  for (const attempt of request.attempts) {
    const to = place(attempt.replica, attempt.bar);
    if (!to) continue;
    const start = xOf(attempt.start_ns);
    const reach = Math.max(3, Math.min(14, (xOf(attempt.end_at) - start) * 0.6));
    list.push({ x0: start, y0: gateway.y, x1: start + reach, y1: to.y, good: attempt.good, request, attempt });
  }
  return list;
}

function paintArcs(seen) {
  const total = seen.reduce((sum, request) => sum + 1 + request.attempts.length, 0);
  const every = Math.max(1, Math.ceil(total / ARCS_MAX));
  const drawn = seen.filter((request) => every === 1 || !request.good || request.index % every === 0 || wanted(request) && selective());
  const [fine, poor, faint] = [new Path2D(), new Path2D(), new Path2D()];
  arcs = [];
  for (const request of drawn.slice(0, ARCS_MAX * 2)) {
    const strong = wanted(request);
    for (const leg of legs(request)) {
      if (strong) arcs.push(leg);
      curve(strong ? (leg.good ? fine : poor) : faint, leg.x0, leg.y0, leg.x1, leg.y1);
    }
  }
  const thin = Math.min(0.7, Math.max(0.16, 60 / Math.max(1, arcs.length)));
  stroke(faint, ink.faint, 0.16, 1);
  stroke(fine, ink.good, view.pinned ? 0.9 : thin, 1);
  stroke(poor, ink.bad, view.pinned ? 0.95 : Math.min(0.9, thin * 2), 1.2);
  return every;
}

function stroke(path, colour, alpha, width) {
  ctx.strokeStyle = colour;
  ctx.globalAlpha = alpha;
  ctx.lineWidth = width;
  ctx.stroke(path);
  ctx.globalAlpha = 1;
}

function paintBars(sight) {
  const picky = selective();
  for (const row of sight) {
    for (const host of row.hosts ?? []) {
      for (const bar of bars.get(host.id)) {
        if (bar.from > view.to) break;
        if (bar.to < view.from || !shown(bar.request)) continue;
        ctx.globalAlpha = picky && !wanted(bar.request) ? 0.26 : 1;
        paintBar(bar, place(host.id, bar));
      }
    }
  }
  ctx.globalAlpha = 1;
}

function paintBar(bar, { y, thick }) {
  const box = (from, to, colour) => {
    const x = Math.max(xOf(from), lanes.gutter - 4);
    ctx.fillStyle = colour;
    ctx.fillRect(x, y - thick / 2, Math.max(1.5, Math.min(xOf(to), lanes.width + 4) - x), thick);
  };
  const work = bar.good ? ink.good : ink.bad;
  if (!bar.attempt && !bar.request.attempts.length) return box(bar.from, bar.to, bar.good ? ink.faint : ink.bad);
  if (bar.first === null) return box(bar.from, bar.to, bar.good ? ink.wait : ink.bad);
  box(bar.from, bar.first, ink.wait);
  box(bar.first, Math.max(bar.to, bar.first), work);
}

// One request's whole way, above everything else: its legs, its bars, and where each attempt came back.
function paintPath(request) {
  const gateway = place(request.gateway, request.bar);
  if (!gateway) return;
  for (const { x0, y0, x1, y1, good } of legs(request)) {
    const path = new Path2D();
    curve(path, x0, y0, x1, y1);
    stroke(path, ink.card, 0.9, 5);
    stroke(path, good ? ink.good : ink.bad, 1, 2.2);
  }
  const boxes = [[request.bar, gateway]];
  for (const attempt of request.attempts) {
    const at = place(attempt.replica, attempt.bar);
    if (!at) continue;
    boxes.push([attempt.bar, at]);
    const back = new Path2D();
    const x = xOf(attempt.end_at);
    back.moveTo(x, at.y);
    back.lineTo(x, gateway.y);
    ctx.setLineDash([2, 4]);
    stroke(back, attempt.good ? ink.good : ink.bad, 0.8, 1.2);
    ctx.setLineDash([]);
  }
  for (const [bar, at] of boxes) {
    const thick = Math.max(at.thick, 5);
    ctx.fillStyle = ink.card;
    ctx.fillRect(xOf(bar.from) - 2, at.y - thick / 2 - 2, xOf(bar.to) - xOf(bar.from) + 4, thick + 4);
    paintBar(bar, { y: at.y, thick });
  }
}
