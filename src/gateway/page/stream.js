// Streams of server-sent events by fetch, which, unlike EventSource, shows a token in a header and sees why it was refused.

const PAUSE_FIRST = 250;
const PAUSE_MOST = 8000;
// The gateway says something every 15 s: who says nothing for so long is gone.
const SILENCE = 40000;

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

const KEY = "halsup-token";
export const token = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => (value === null ? sessionStorage.removeItem(KEY) : sessionStorage.setItem(KEY, value)),
};

export async function call(method, path, body) {
  const headers = {};
  if (token.get() !== null) headers.Authorization = `Bearer ${token.get()}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const response = await fetch(path, { method, headers, body: body && JSON.stringify(body), cache: "no-store" });
  const told = await response.json().catch(() => ({}));
  if (!response.ok) throw new Refused(response.status, told.message ?? `${response.status}`);
  return told;
}

// Reads a stream for ever; `on.message(event, data)`, `on.lost(milliseconds, error)`. What is returned ends it.
export function listen(path, on) {
  let ended = false;
  let abort = new AbortController();
  let wake = () => {};
  (async () => {
    let pause = PAUSE_FIRST;
    while (!ended) {
      let error = null;
      try {
        abort = new AbortController();
        await read(path, abort, (event, data) => {
          pause = PAUSE_FIRST;
          on.message(event, data);
        });
      } catch (thrown) {
        error = thrown;
      }
      if (ended) return;
      on.lost(pause, error);
      await new Promise((resolve) => {
        wake = resolve;
        setTimeout(resolve, pause);
      });
      pause = Math.min(pause * 2, PAUSE_MOST);
    }
  })();
  return {
    end: () => {
      ended = true;
      abort.abort();
      wake();
    },
    again: () => {
      abort.abort();
      wake();
    },
  };
}

async function read(path, abort, message) {
  let timer = setTimeout(() => abort.abort(), SILENCE);
  try {
    const headers = { Accept: "text/event-stream" };
    if (token.get() !== null) headers.Authorization = `Bearer ${token.get()}`;
    const response = await fetch(path, { headers, signal: abort.signal, cache: "no-store" });
    if (!response.ok) {
      const told = await response.json().catch(() => ({}));
      throw new Refused(response.status, told.message ?? `${response.status}`);
    }
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let held = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      clearTimeout(timer);
      timer = setTimeout(() => abort.abort(), SILENCE);
      const parts = (held + value).split("\n\n");
      held = parts.pop();
      for (const part of parts) {
        let event = "message";
        let data = null;
        for (const line of part.split("\n")) {
          if (line.startsWith("event: ")) event = line.slice(7);
          if (line.startsWith("data: ")) data = line.slice(6);
        }
        if (data !== null) message(event, JSON.parse(data));
      }
    }
  } finally {
    clearTimeout(timer);
  }
}
