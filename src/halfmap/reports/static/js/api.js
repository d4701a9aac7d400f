// What the pages ask the server. All addresses are relative: a prefix of a proxy stays in front.

export function address(path, query = {}) {
  const given = Object.entries(query).filter(([, v]) => v !== null && v !== undefined && v !== "");
  const text = new URLSearchParams(given.map(([k, v]) => [k, String(v)])).toString();
  return text ? `${path}?${text}` : path;
}

async function checked(answer) {
  if (answer.ok) return answer;
  let message = `the server answered ${answer.status}`;
  try {
    message = (await answer.json()).error || message;
  } catch {
    // no JSON: the number has to do
  }
  throw new Error(message);
}

export async function getJson(path, query = {}) {
  return (await checked(await fetch(address(path, query)))).json();
}

export async function getBuffer(path, query = {}) {
  return (await checked(await fetch(address(path, query)))).arrayBuffer();
}

export async function post(path, body) {
  const answer = await fetch(path, {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-Halfmap": "1" },
    body: JSON.stringify(body),
  });
  return (await checked(answer)).json();
}
