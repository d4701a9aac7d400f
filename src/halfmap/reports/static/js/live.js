// The jobs as they are now: one line to the server that mends itself, and who wants to know.

const rows = new Map();
const listeners = new Set();
let starts = [];
let source = null;
let connected = false;

export function jobs() {
  return rows;
}

export function started() {
  return starts;
}

export function isLive() {
  return connected;
}

export function onChange(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

function tell(changed) {
  for (const listener of listeners) listener(changed);
}

export function connect() {
  source = new EventSource("events");
  source.onmessage = (event) => {
    const message = JSON.parse(event.data);
    const changed = new Set(message.gone);
    if (message.all) {
      for (const id of rows.keys()) changed.add(id);
      rows.clear();
    }
    for (const row of message.rows) {
      rows.set(row.id, row);
      changed.add(row.id);
    }
    for (const id of message.gone) rows.delete(id);
    starts = message.starts;
    connected = true;
    tell(changed);
  };
  source.onerror = () => {
    connected = false;
    tell(new Set());
    if (source.readyState === EventSource.CLOSED) {
      setTimeout(connect, 2000); // a server that was down answers again
    }
  };
}

// Children below the parent that has come the longest way, in the order of their names.
export function tree() {
  const depths = new Map();
  const depth = (id) => {
    if (depths.has(id)) return depths.get(id);
    depths.set(id, 0); // a circle of parents ends here
    const above = (rows.get(id).parents || []).filter((p) => rows.has(p) && p !== id);
    depths.set(id, above.length ? 1 + Math.max(...above.map(depth)) : 0);
    return depths.get(id);
  };
  const children = new Map();
  const tops = [];
  const ids = [...rows.keys()].sort((a, b) => a.localeCompare(b, undefined, { numeric: true }));
  for (const id of ids) {
    const above = (rows.get(id).parents || []).filter((p) => rows.has(p) && p !== id);
    const parent = above.sort((a, b) => depth(b) - depth(a))[0];
    if (parent === undefined) tops.push(id);
    else children.set(parent, [...(children.get(parent) || []), id]);
  }
  const order = [];
  const seen = new Set();
  const add = (id, lines) => {
    if (seen.has(id)) return;
    seen.add(id);
    order.push({ id, lines });
    const below = children.get(id) || [];
    below.forEach((child, k) => add(child, [...lines, k === below.length - 1]));
  };
  for (const id of tops) add(id, []);
  for (const id of ids) add(id, []); // a circle of parents has no top
  return order;
}
