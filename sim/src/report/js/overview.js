// The whole run in one strip: requests per slice, failures among them, faults above, and the window as a brush.

const strip = document.getElementById('overview');
const stripPen = strip.getContext('2d');
const FAULT_ROWS = 4;
const BAND = 4;
const FOOT = 17;
// How near to an edge of the window a press takes that edge.
const GRIP = 8;
// Width from which the foot has room for the highest rate.
const PEAK_FROM = 700;

// Faults that overlap stand below each other; more than there are rows share the last one.
const faultRows = (() => {
  const until = [];
  return [...story.faults].sort((a, b) => a.start_ns - b.start_ns).map((fault) => {
    let row = until.findIndex((end) => end <= fault.start_ns);
    if (row < 0) row = until.length < FAULT_ROWS ? until.length : FAULT_ROWS - 1;
    until[row] = fault.end;
    return { fault, row };
  });
})();

const stripX = (ns, width) => (ns / DURATION) * width;

function paintOverview() {
  const [width, height] = fit(strip, stripPen);
  const top = 6 + FAULT_ROWS * (BAND + 1);
  const base = height - FOOT;
  paintColumns(width, top, base);
  for (const { fault, row } of faultRows) {
    const x = stripX(fault.start_ns, width);
    stripPen.fillStyle = ink.fault;
    stripPen.globalAlpha = 0.85;
    stripPen.fillRect(x, 5 + row * (BAND + 1), Math.max(2, stripX(fault.end, width) - x), BAND);
  }
  stripPen.globalAlpha = 1;
  paintStripAxis(width, base);
  paintBrush(width, base);
  if (broken) {
    const x = stripX(broken.at_ns, width);
    stripPen.fillStyle = ink.violation;
    stripPen.fillRect(x - 0.75, 0, 1.5, base);
    stripPen.beginPath();
    stripPen.moveTo(x - 5, 0); stripPen.lineTo(x + 5, 0); stripPen.lineTo(x, 7);
    stripPen.fill();
  }
  strip.setAttribute('aria-valuemin', '0');
  strip.setAttribute('aria-valuemax', String(Math.round(DURATION / SECOND)));
  strip.setAttribute('aria-valuenow', String(Math.round(view.from / SECOND)));
  strip.setAttribute('aria-valuetext', `from ${instant(view.from, 1)} to ${instant(view.to, 1)}`);
}

function paintColumns(width, top, base) {
  const { arrived, failed } = story.tally;
  const most = Math.max(1, ...arrived, ...failed);
  const each = width / arrived.length;
  arrived.forEach((n, at) => {
    const high = (value) => (value ? Math.max(1, (value / most) * (base - top)) : 0);
    stripPen.fillStyle = ink.good;
    stripPen.globalAlpha = 0.42;
    stripPen.fillRect(at * each, base - high(n), Math.max(1, each - 0.5), high(n));
    stripPen.globalAlpha = 1;
    stripPen.fillStyle = ink.bad;
    stripPen.fillRect(at * each, base - high(failed[at]), Math.max(1, each - 0.5), high(failed[at]));
  });
}

function paintStripAxis(width, base) {
  stripPen.fillStyle = ink.line;
  stripPen.fillRect(0, base, width, 1);
  stripPen.font = `11px ${ink.sans}`;
  stripPen.textBaseline = 'middle';
  const { list, digits } = ticks(0, DURATION, width / 110);
  for (const at of list) {
    const x = stripX(at, width);
    if (x > width - (width > PEAK_FROM ? 190 : 34)) continue;
    stripPen.fillStyle = ink.soft;
    stripPen.fillText(instant(at, digits), x + 4, base + FOOT / 2 + 0.5);
  }
  if (width <= PEAK_FROM) return;
  const most = Math.max(...story.tally.arrived) / (DURATION / story.tally.arrived.length / SECOND);
  stripPen.fillStyle = ink.soft;
  stripPen.textAlign = 'right';
  stripPen.fillText(`${most < 10 ? most.toFixed(1) : Math.round(most)} requests/s at most`, width - 8, base + FOOT / 2 + 0.5);
  stripPen.textAlign = 'left';
}

function paintBrush(width, height) {
  const [from, to] = [stripX(view.from, width), stripX(view.to, width)];
  stripPen.fillStyle = ink.card;
  stripPen.globalAlpha = 0.5;
  stripPen.fillRect(0, 0, from, height);
  stripPen.fillRect(to, 0, width - to, height);
  stripPen.globalAlpha = 1;
  stripPen.strokeStyle = ink.ink;
  stripPen.lineWidth = 1.5;
  stripPen.strokeRect(from + 0.75, 0.75, Math.max(2, to - from - 1.5), height - 1.5);
  stripPen.fillStyle = ink.ink;
  for (const x of [from, to]) stripPen.fillRect(x - 2, height / 2 - 9, 4, 18);
}

// Press inside to move the window, at an edge to stretch it, elsewhere to bring it there or draw a new one.
function brush() {
  let grip = null;
  const at = (event) => {
    const box = strip.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * DURATION, (GRIP / box.width) * DURATION];
  };
  const edge = (time, near) => (Math.abs(time - view.from) < near ? 'from' : Math.abs(time - view.to) < near ? 'to' : time > view.from && time < view.to ? 'move' : 'new');
  strip.addEventListener('pointerdown', (event) => {
    const [time, near] = at(event);
    land();
    grip = { what: edge(time, near), time, from: view.from, to: view.to, moved: false };
    strip.setPointerCapture(event.pointerId);
  });
  strip.addEventListener('pointermove', (event) => {
    const [time, near] = at(event);
    if (!grip) { strip.style.cursor = { from: 'ew-resize', to: 'ew-resize', move: 'grab', new: 'crosshair' }[edge(time, near)]; return; }
    grip.moved ||= Math.abs(time - grip.time) > near / 2;
    if (grip.what === 'move') show(grip.from + time - grip.time, grip.to + time - grip.time);
    else if (grip.what === 'from') show(Math.min(time, grip.to - WINDOW_MIN), grip.to);
    else if (grip.what === 'to') show(grip.from, Math.max(time, grip.from + WINDOW_MIN));
    else if (grip.moved) show(Math.min(time, grip.time), Math.max(time, grip.time));
  });
  const done = () => {
    if (grip && grip.what === 'new' && !grip.moved) {
      const half = (view.to - view.from) / 2;
      glide(grip.time - half, grip.time + half);
    }
    grip = null;
  };
  strip.addEventListener('pointerup', done);
  strip.addEventListener('pointercancel', () => { grip = null; });
}
