// Wheel, drag, pinch and keys.

// How far a press may move and still be a press.
const SLIP = 4;
const HINT_MS = 1600;
let hintTimer = 0;

function hint(text) {
  const note = document.getElementById('hint');
  note.textContent = text;
  note.hidden = false;
  clearTimeout(hintTimer);
  hintTimer = setTimeout(() => { note.hidden = true; }, HINT_MS);
}

// A plain wheel scrolls, as it does everywhere: a picture that swallowed it would trap whoever scrolls past.
function wheel(event) {
  const box = canvas.getBoundingClientRect();
  if (event.ctrlKey || event.metaKey) {
    event.preventDefault();
    zoom(Math.exp(Math.max(-60, Math.min(60, event.deltaY)) * 0.012), timeAt(event.clientX - box.left));
  } else if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
    event.preventDefault();
    pan((event.deltaX || event.deltaY) / box.width);
  } else if (space.offsetHeight === 0) {
    hint('Ctrl + wheel zooms, Shift + wheel moves');
  }
  unhover();
}

function pointers() {
  const down = new Map();
  let start = null;
  const local = (event) => {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  const begin = () => {
    const xs = [...down.values()].map(([x]) => x);
    start = { xs, from: view.from, to: view.to, top: scroller.scrollTop, y: [...down.values()][0]?.[1], moved: start?.moved ?? false };
  };
  canvas.addEventListener('pointerdown', (event) => {
    if (event.button !== 0) return;
    land();
    down.set(event.pointerId, local(event));
    if (down.size === 1) start = null;
    begin();
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener('pointermove', (event) => {
    const [x, y] = local(event);
    if (!down.has(event.pointerId)) {
      if (event.pointerType === 'mouse') hover(x, y, event.clientX, event.clientY);
      return;
    }
    down.set(event.pointerId, [x, y]);
    drag(start, [...down.values()], event.pointerType);
  });
  const up = (event) => {
    if (!down.delete(event.pointerId)) return;
    canvas.classList.remove('dragged');
    if (down.size) return begin();
    if (!start.moved && event.type === 'pointerup') press(...local(event));
    start = null;
  };
  canvas.addEventListener('pointerup', up);
  canvas.addEventListener('pointercancel', up);
  canvas.addEventListener('pointerleave', unhover);
  canvas.addEventListener('dblclick', (event) => {
    if (local(event)[0] > lanes.gutter) zoom(0.5, timeAt(local(event)[0]));
  });
}

// One finger moves the window; two hold their instants where they are.
function drag(start, now, type) {
  const plot = lanes.width - lanes.gutter;
  const perPixel = (start.to - start.from) / plot;
  if (now.length > 1 && start.xs.length > 1) {
    start.moved = true;
    const at = (x) => start.from + (x - lanes.gutter) * perPixel;
    const [a, b] = [at(start.xs[0]), at(start.xs[1])];
    const scale = (b - a) / (now[1][0] - now[0][0] || 1);
    if (scale > 0) show(a - (now[0][0] - lanes.gutter) * scale, a + (lanes.width - now[0][0]) * scale);
    return;
  }
  const [dx, dy] = [now[0][0] - start.xs[0], now[0][1] - start.y];
  if (!start.moved && Math.hypot(dx, dy) < SLIP) return;
  start.moved = true;
  canvas.classList.add('dragged');
  unhover();
  show(start.from - dx * perPixel, start.to - dx * perPixel);
  if (type === 'mouse') scroller.scrollTop = start.top - dy;
}

const KEYS = {
  '+': () => zoom(0.7), '=': () => zoom(0.7), '-': () => zoom(1 / 0.7), '0': () => glide(0, DURATION),
  j: () => broken && jump(), n: () => step(1), p: () => step(-1),
  Escape: () => { unhover(); pin(null); address(''); },
  '/': () => document.getElementById('query').focus(),
};
const ARROWS = {
  ArrowLeft: () => pan(-0.15), ArrowRight: () => pan(0.15),
  ArrowUp: () => { scroller.scrollTop -= 60; }, ArrowDown: () => { scroller.scrollTop += 60; },
  PageUp: () => { scroller.scrollTop -= scroller.clientHeight; }, PageDown: () => { scroller.scrollTop += scroller.clientHeight; },
  Home: () => glide(0, view.to - view.from), End: () => glide(DURATION - (view.to - view.from), DURATION),
};

function keys(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest('input')) return;
  const onCanvas = event.target === canvas || event.target === strip;
  const act = KEYS[event.key] ?? KEYS[event.key.toLowerCase()] ?? (onCanvas ? ARROWS[event.key] : undefined);
  if (!act) return;
  event.preventDefault();
  act();
}
