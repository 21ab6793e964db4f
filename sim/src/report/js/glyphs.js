// What stands above the bars: breakers, moves, marks, the failing moment; quota lines; names and the axis.

const NOTE = 11;

function paintGlyphs(sight) {
  const seen = new Set(sight);
  for (const row of sight) if (row.type === 'quota') paintQuota(row);
  for (const open of openSpans) paintOpen(open, seen);
  for (const request of requests) paintEnds(request, seen);
  for (const turn of breakers) paintTurn(turn, seen);
  for (const move of story.moves) paintMove(move);
  for (const mark of story.marks) paintMark(mark, seen);
  for (const fault of story.faults) paintFaultName(fault, seen);
}

const inWindow = (at) => at >= view.from && at <= view.to;
const spot = (x, y, reach, what) => spots.push([x - reach, y - reach, reach * 2, reach * 2, what]);

function paintOpen({ turn, from, to, replica }, seen) {
  const lane = laneOf(replica);
  if (!lane || !seen.has(lane) || from > view.to || to < view.from) return;
  const [x, until] = [Math.max(xOf(from), lanes.gutter), Math.min(xOf(to), lanes.width)];
  const y = lane.y + lane.height - 3;
  ctx.fillStyle = ink.open;
  if (turn.to === 'open') ctx.fillRect(x, y, Math.max(2, until - x), 2.5);
  else for (let dash = x; dash < until; dash += 7) ctx.fillRect(dash, y, Math.min(4, until - dash), 2.5);
  spots.push([x, y - 3, until - x, 8, { kind: 'breaker', turn }]);
}

// A fault is named where it begins, once, if its shade is wide enough for the words.
function paintFaultName(fault, seen) {
  if (fault.start_ns > view.to || fault.end < view.from) return;
  const lane = fault.hosts.map(laneOf).find((row) => row && seen.has(row));
  if (!lane || lane.type === 'shut') return;
  const [x, until] = [Math.max(xOf(fault.start_ns), lanes.gutter) + 5, Math.min(xOf(fault.end), lanes.width) - 5];
  ctx.font = `600 10.5px ${ink.sans}`;
  const wide = ctx.measureText(fault.kind).width;
  if (until - x < wide) return;
  // What the reader picked out stands in the way, more often than not at the beginning.
  const left = view.pinned && lane.hosts.some((host) => touches(view.pinned, host.id)) ? until - wide : x;
  ctx.textAlign = 'left';
  ctx.textBaseline = 'middle';
  ctx.lineWidth = 3;
  ctx.lineJoin = 'round';
  ctx.strokeStyle = ink.card;
  ctx.fillStyle = ink.faultText;
  const y = lane.y + Math.min(9, lane.height / 2);
  ctx.strokeText(fault.kind, left, y);
  ctx.fillText(fault.kind, left, y);
}

// A failed attempt ends in a cross.
function paintEnds(request, seen) {
  if (request.good && request.attempts.length < 2) return;
  if (request.arrived_ns > view.to || request.end < view.from || !shown(request)) return;
  ctx.globalAlpha = selective() && !wanted(request) ? 0.2 : 1;
  ctx.strokeStyle = ink.bad;
  ctx.lineWidth = 1.5;
  for (const attempt of request.attempts) {
    const at = attempt.good ? null : place(attempt.replica, attempt.bar);
    if (!at || !seen.has(at.lane) || !inWindow(attempt.end_at)) continue;
    const x = xOf(attempt.end_at);
    ctx.beginPath();
    ctx.moveTo(x - 3, at.y - 3); ctx.lineTo(x + 3, at.y + 3);
    ctx.moveTo(x - 3, at.y + 3); ctx.lineTo(x + 3, at.y - 3);
    ctx.stroke();
  }
  ctx.globalAlpha = 1;
}

function paintTurn(turn, seen) {
  const lane = laneOf(turn.replica);
  if (!lane || !seen.has(lane) || !inWindow(turn.at_ns)) return;
  const [x, y] = [xOf(turn.at_ns), lane.y + lane.height - 2];
  ctx.fillStyle = turn.to === 'open' ? ink.open : ink.card;
  ctx.strokeStyle = ink.open;
  ctx.lineWidth = 1.5;
  ctx.beginPath();
  ctx.arc(x, y, 3.4, 0, Math.PI * 2);
  ctx.fill();
  ctx.stroke();
  spot(x, y, 6, { kind: 'breaker', turn });
}

function paintMove(move) {
  if (!inWindow(move.at_ns)) return;
  const [from, to] = [laneOf(move.from), laneOf(move.to)];
  const lane = to ?? from;
  if (!lane) return;
  const mine = view.pinned && view.pinned.session === move.session;
  const x = xOf(move.at_ns);
  const middle = (row) => row.y + row.height / 2;
  ctx.globalAlpha = view.pinned && !mine ? 0.2 : 1;
  if (from && to && from !== to) {
    const path = new Path2D();
    path.moveTo(x, middle(from));
    path.lineTo(x, middle(to));
    ctx.setLineDash([3, 3]);
    stroke(path, ink.ink, view.pinned && !mine ? 0.1 : 0.45, 1);
    ctx.setLineDash([]);
  }
  ctx.globalAlpha = view.pinned && !mine ? 0.2 : 1;
  ctx.save();
  ctx.translate(x, middle(lane));
  ctx.rotate(Math.PI / 4);
  ctx.fillStyle = ink.card;
  ctx.strokeStyle = ink.ink;
  ctx.lineWidth = 1.4;
  ctx.fillRect(-3.4, -3.4, 6.8, 6.8);
  ctx.strokeRect(-3.4, -3.4, 6.8, 6.8);
  ctx.restore();
  ctx.globalAlpha = 1;
  spot(x, middle(lane), 7, { kind: 'move', move });
}

function paintMark(mark, seen) {
  const lane = laneOf(mark.host);
  if (!lane || !seen.has(lane) || !inWindow(mark.at_ns)) return;
  const [x, y] = [xOf(mark.at_ns), lane.y + 1];
  ctx.fillStyle = ink.ink;
  ctx.fillRect(x - 0.5, y, 1, lane.height - 2);
  ctx.beginPath();
  ctx.moveTo(x - 5, y); ctx.lineTo(x + 5, y); ctx.lineTo(x, y + 8);
  ctx.fill();
  spot(x, y + 5, 7, { kind: 'mark', mark });
}

function paintViolation(top, height) {
  const x = xOf(broken.at_ns);
  const glow = ctx.createLinearGradient(x - 26, 0, x + 26, 0);
  glow.addColorStop(0, 'transparent');
  glow.addColorStop(0.5, ink.violation);
  glow.addColorStop(1, 'transparent');
  ctx.globalAlpha = 0.13;
  ctx.fillStyle = glow;
  ctx.fillRect(x - 26, top, 52, height);
  ctx.globalAlpha = 1;
  ctx.fillStyle = ink.violation;
  ctx.fillRect(x - 0.75, top, 1.5, height);
  for (const lane of new Set(broken.hosts.map(laneOf).filter(Boolean))) {
    ctx.beginPath();
    ctx.arc(x, lane.y + lane.height / 2, 5, 0, Math.PI * 2);
    ctx.fill();
    ctx.strokeStyle = ink.card;
    ctx.lineWidth = 1.5;
    ctx.stroke();
  }
  spots.push([x - 5, top, 10, height, { kind: 'violation' }]);
}

// Spent as a line that holds until the next point, outstanding as a veil on top of it, the limit dashed.
function paintQuota(row) {
  const { quota, y, height } = row;
  const roof = Math.max(1, quota.peak);
  // A limit far above what was spent would flatten the line: it is named then, not drawn.
  const near = quota.limit !== null && quota.limit <= roof * 4;
  const most = near ? Math.max(roof, quota.limit) * 1.12 : roof * 1.12;
  const yOf = (value) => y + height - 5 - (value / most) * (height - 10);
  const trace = (pick) => {
    const path = new Path2D();
    let level = yOf(0);
    path.moveTo(Math.max(xOf(0), lanes.gutter - 2), level);
    for (const point of quota.points) {
      if (point[0] > view.to) break;
      const x = Math.max(xOf(point[0]), lanes.gutter - 2);
      path.lineTo(x, level);
      level = yOf(pick(point));
      path.lineTo(x, level);
    }
    path.lineTo(Math.min(xOf(DURATION), lanes.width + 2), level);
    return path;
  };
  const veil = trace(([, spent, out]) => spent + out);
  veil.lineTo(Math.min(xOf(DURATION), lanes.width + 2), yOf(0));
  ctx.globalAlpha = 0.28;
  ctx.fillStyle = ink.good;
  ctx.fill(veil);
  stroke(trace(([, spent]) => spent), ink.good, 1, 1.6);
  if (near) {
    const limit = new Path2D();
    limit.moveTo(lanes.gutter, yOf(quota.limit));
    limit.lineTo(lanes.width, yOf(quota.limit));
    ctx.setLineDash([5, 4]);
    stroke(limit, ink.soft, 0.9, 1);
    ctx.setLineDash([]);
  }
  spots.push([lanes.gutter, y, lanes.width, height, { kind: 'quota', quota }]);
}

function paintNames(sight, top, height) {
  ctx.fillStyle = ink.card;
  ctx.fillRect(0, 0, lanes.gutter, height);
  ctx.fillStyle = ink.line;
  ctx.fillRect(lanes.gutter - 1, 0, 1, height);
  ctx.textBaseline = 'middle';
  ctx.textAlign = 'left';
  const blame = new Set(broken ? broken.hosts : []);
  for (const row of sight) {
    const y = row.y - top + row.height / 2;
    if (row.type === 'quota') paintAccount(row, y);
    if (row.type === 'more') label(view.accounts ? '▾ fewer accounts' : `▸ ${quotas.length - QUOTAS_SHOWN} more`, 10, y, ink.soft, `600 ${NOTE}px`);
    if (row.type === 'head' || row.type === 'shut') {
      label(`${view.shut.has(row.kind) ? '▸' : '▾'} ${KIND_NAMES[row.kind]}`, 10, y, ink.soft, `600 ${NOTE}px`);
      const of = row.type === 'head' && row.shown < row.total ? `${row.shown} of ${row.total}` : `${row.total}`;
      if (lanes.gutter > 100) label(of, lanes.gutter - 10, y, ink.soft, `${NOTE}px`, 'right');
    }
    if (row.type !== 'lane') continue;
    const mine = view.host === row.host.id || view.pinned && touches(view.pinned, row.host.id);
    const colour = blame.has(row.host.id) ? ink.violation : ink.ink;
    if (blame.has(row.host.id)) { ctx.fillStyle = ink.violation; ctx.fillRect(0, row.y - top + 2, 3, row.height - 4); }
    label(row.host.name, row.kind === 'clients' || lanes.gutter < 100 ? 10 : 18, y, colour, `${mine ? 650 : 400} 12.5px`);
  }
}

function paintAccount(row, y) {
  const { quota } = row;
  const last = quota.points.findLast((point) => point[0] <= view.to);
  const spent = last ? last[1] : 0;
  label(quota.account, 10, y - 8, ink.ink, '12.5px');
  label(quota.limit === null ? `${short(spent)} spent` : `${short(spent)} of ${short(quota.limit)}`, 10, y + 8, ink.soft, `${NOTE}px`);
}

function label(text, x, y, colour, font, align = 'left') {
  ctx.font = `${font} ${ink.sans}`;
  ctx.fillStyle = colour;
  ctx.textAlign = align;
  ctx.fillText(fitting(ctx, text, lanes.gutter - 8 - (align === 'left' ? x : 0)), x, y);
  ctx.textAlign = 'left';
}

// The text, or as much of it as fits: its end stays, for that is where names differ.
function fitting(pen, text, width) {
  if (pen.measureText(text).width <= width) return text;
  const end = text.slice(-4);
  let kept = text.slice(0, Math.min(48, text.length - 4));
  while (kept.length > 1 && pen.measureText(`${kept}…${end}`).width > width) kept = kept.slice(0, -1);
  return `${kept}…${end}`;
}

function paintAxis(width) {
  ctx.fillStyle = ink.card;
  ctx.fillRect(0, 0, width, AXIS);
  ctx.fillStyle = ink.line;
  ctx.fillRect(0, AXIS - 1, width, 1);
  const { list, digits } = ticks(view.from, view.to, (width - lanes.gutter) / TICK);
  ctx.font = `11px ${ink.sans}`;
  ctx.textBaseline = 'middle';
  for (const at of list) {
    const x = xOf(at);
    ctx.fillStyle = ink.line;
    ctx.fillRect(x, AXIS - 6, 1, 5);
    ctx.fillStyle = ink.soft;
    ctx.fillText(instant(at, digits), x + 4, AXIS / 2);
  }
  if (broken && inWindow(broken.at_ns)) paintFlag(width);
}

function paintFlag(width) {
  const text = `invariant ${broken.invariant} broke`;
  ctx.font = `600 11px ${ink.sans}`;
  const wide = ctx.measureText(text).width + 14;
  const x = Math.max(lanes.gutter, Math.min(xOf(broken.at_ns) - wide / 2, width - wide - 2));
  ctx.fillStyle = ink.violation;
  ctx.beginPath();
  ctx.roundRect(x, 4, wide, AXIS - 8, 4);
  ctx.fill();
  ctx.fillStyle = ink.card;
  ctx.fillText(text, x + 7, AXIS / 2 + 0.5);
}
